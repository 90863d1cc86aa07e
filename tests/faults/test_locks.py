"""Two runs on one output: the second is refused, and a dead process leaves no lock that counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dense_plugin import dense_plugin
from faults.conftest import environment
from small_models import ModelFolder

SLOW = dense_plugin(
    "slow",
    """
    while Slow.weights > 10 and pathlib.Path(__file__).with_name("hold").exists():
        time.sleep(0.05)
    """,
    "pathlib, time",
)


def launch(command: list[str]) -> subprocess.Popen[str]:
    whole = [sys.executable, "-m", "lowbit.cli.main", *command]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_a_second_run_is_refused_until_the_first_one_is_dead(tmp_path: Path, parent: ModelFolder) -> None:
    plugin, output = tmp_path / "slow.py", tmp_path / "out"
    plugin.write_text(SLOW)
    (tmp_path / "hold").touch()
    command = ["quantize", "--method", "slow", "--plugin", str(plugin), "--model", str(parent("llama")), "-o"]
    command += [str(output)]
    first = launch(command)
    wait_for(tmp_path / "out.partial" / "block-00000.safetensors")
    second = launch(command)
    _, error = second.communicate(timeout=120)
    assert second.returncode == 1
    (line,) = [line for line in error.splitlines() if line.startswith("lowbit: error: ")]
    assert f"process {first.pid} on {os.uname().nodename}" in line
    assert str(tmp_path / "out.lock") in line
    assert "Traceback" not in error
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (tmp_path / "out.lock").exists()
    (tmp_path / "hold").unlink()
    third = launch(command)
    _, error = third.communicate(timeout=120)
    assert third.returncode == 0, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.cost.json", "slow.py"]


@pytest.mark.parametrize("work", ["repack", "generate"])
def test_other_commands_refuse_an_output_that_is_being_written(
    tmp_path: Path, packed: ModelFolder, parent: ModelFolder, work: str
) -> None:
    from lowbit.cli.main import main
    from lowbit.durable import one_at_a_time

    output = tmp_path / ("out.npz" if work == "generate" else "out")
    commands = {
        "repack": ["repack", str(packed("llama")), "--packer", "plain", "-o", str(output)],
        "generate": ["generate", "--model", str(parent("llama")), "--n_samples", "2", "--seq_len", "4"],
    }
    command = commands[work] + (["-o", str(output)] if work == "generate" else [])
    with (
        one_at_a_time(output.with_name(output.name + ".lock"), "working"),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as ended,
    ):
        told: list[str] = []
        patch.setattr("click.echo", lambda text="", **_: told.append(str(text)))
        main(command)
    assert ended.value.code == 1
    assert any("another process" in text and f"{output.name}.lock" in text for text in told), told
    assert not output.exists()
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert output.exists()
    assert not output.with_name(output.name + ".lock").exists()
