"""Ctrl-C leaves a journal that the same command continues from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dense_plugin import dense_plugin

from lowbit.cli import main as command_line

SLOW_PLUGIN = dense_plugin("slow", "time.sleep(0.15)")


def test_an_interrupted_run_says_so_and_continues(tmp_path: Path) -> None:
    plugin = tmp_path / "slow_plugin.py"
    plugin.write_text(SLOW_PLUGIN)
    output = tmp_path / "checkpoint"
    command = [sys.executable, "-m", "lowbit.cli.main", "quantize", "--method", "slow"]
    command += ["--plugin", str(plugin), "-o", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = output.with_name("checkpoint.partial")
    deadline = time.monotonic() + 120
    while not (journal / "block-00000.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "the same command continues" in error
    assert journal.is_dir() and not output.exists()

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "blocks were finished before" in done.stderr
    assert output.is_dir() and not journal.exists()


def test_a_library_that_swallows_the_signal_changes_nothing_of_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallows(arguments: list[str], standalone_mode: bool) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "cli", swallows)
    with pytest.raises(SystemExit) as ended:
        command_line.main([])
    assert ended.value.code == 143
    assert "lowbit: terminated; " in capsys.readouterr().err
