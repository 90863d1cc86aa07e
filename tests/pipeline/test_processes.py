"""Two processes on the loopback device train as one does."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from distillation.small_training import CALIBRATION, METHOD, tokens_file
from pipeline.launching import launch, start
from small_models import ModelFolder, quantize

SETTINGS = {"steps": 4, "batch_size": 4, "held_out": 3, "evaluate_every": 2, "checkpoint_every": 2}
DAD = {"name": "dad", "mixing": 1.0}

FAILS_IN_ONE = """
import os
from lowbit import DistillationLoss, TokenLoss, hookimpl

class Fails(DistillationLoss):
    name = "fails"

    def __call__(self, batch):
        if os.environ["RANK"] == "{rank}" and batch.student_logits.requires_grad:
            raise ValueError("this process fails")
        return TokenLoss((batch.student_logits - batch.teacher_logits).square().mean(-1))

@hookimpl
def lowbit_distillation_losses():
    yield Fails
"""


def curve(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "lowbit_provenance.json").read_text())["training"]["distillation"]
    return found


def assert_same_curve(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert [step for step, _ in found["held_out"]] == [step for step, _ in expected["held_out"]]
    held_out = [[loss for _, loss in one["held_out"]] for one in (found, expected)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)


def assert_same_weights(found: Path, expected: Path) -> None:
    files = sorted(file.name for file in expected.glob("*.safetensors"))
    assert files
    for file in files:
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file


def command(parent: Path, tmp_path: Path, *more: str) -> list[str]:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"distillation.{key}={value}")]
    return [
        "--model", str(parent), "--method", METHOD, "--calibration", str(tokens_file(tmp_path)),
        "--set", "training_data.source=calibration", "--set", "quantizer.grid_candidates=4",
        "--set", "quantizer.iterations=2", *settings, *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(("dad-True", "halves-False", "halves-True"), id="quick"),
        pytest.param(None, id="all", marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_loss_curve_of_one_with_whole_and_with_shared_out_weights(
    parent: ModelFolder, tmp_path: Path, wanted: tuple[str, ...] | None
) -> None:
    runs: list[dict[str, Any]] = [
        {
            "name": f"{name}-{sharded}",
            "settings": {**SETTINGS, "loss": loss, **more},
            "sharded": sharded,
            "stop_after": 3 if sharded else None,
        }
        for name, loss, more in (
            ("kl", "kl", {}),
            ("dad", DAD, {"micro_batch_size": 1, "gradient_checkpointing": True}),
            ("mse", ["mse", "kl"], {"chunk_elements": 1000}),
            ("halves", [DAD, "kl"], {}),
        )
        for sharded in (False, True)
        if wanted is None or f"{name}-{sharded}" in wanted
    ]
    tokens = tokens_file(tmp_path)
    program = [str(Path(__file__).with_name("processes_program.py")), str(parent("llama")), str(tmp_path), str(tokens)]
    done = launch([*program, json.dumps(runs)])
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (tmp_path / "heard-by-0").exists() and not (tmp_path / "heard-by-1").exists()
    for run in runs:
        parts = [float(file.read_text()) for file in sorted(tmp_path.glob(f"split-{run['name']}-*"))]
        assert len(parts) == (2 if run["sharded"] else 0)
        assert all(0.4 < part < 0.75 for part in parts)
        alone = tmp_path / "alone" / run["name"].partition("-")[0]
        if not alone.exists():
            flags = {"calibration": {"source": str(tokens)}, **CALIBRATION}
            quantize(parent("llama"), alone, METHOD, **flags, distillation=run["settings"])
        assert_same_curve(curve(tmp_path / run["name"]), curve(alone))
        if "micro_batch_size" not in run["settings"]:
            assert curve(tmp_path / run["name"])["losses"] == curve(alone)["losses"]
            assert_same_weights(tmp_path / run["name"], alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
        ("accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2",
         "--num_machines", "1"),
    ],
    ids=["cpu", "fsdp"],
)  # fmt: skip
def test_the_command_line_under_accelerate_prints_once(
    parent: ModelFolder, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    options = ("--mixed_precision", "no", "--dynamo_backend", "no")
    arguments = command(parent("gpt2"), tmp_path, "-o", str(tmp_path / "out"))
    done = launch(["--module", "lowbit.cli.main", "quantize", *arguments], (*launcher, *options))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("of the decoder's weights quantized") == 1
    flags = {"calibration": {"source": str(tmp_path / "tokens.npz")}, **CALIBRATION}
    quantize(parent("gpt2"), tmp_path / "alone", METHOD, **flags, distillation=SETTINGS)
    assert_same_curve(curve(tmp_path / "out"), curve(tmp_path / "alone"))
    assert_same_weights(tmp_path / "out", tmp_path / "alone")


@pytest.mark.slow
def test_a_bench_evaluates_and_prints_in_the_main_process_alone(tmp_path: Path) -> None:
    settings = [f"dbllm-ptq:distillation.{key}={value}" for key, value in {**SETTINGS, "steps": 2}.items()]
    arguments = [word for setting in settings for word in ("--set", setting)]
    arguments += ["--set", "training_data.source=calibration", "--n_samples", "12", "--seq_len", "16"]
    arguments += ["--method", "dbllm-ptq,rtn", "--tasks", "smallworld_choice", "--limit", "4"]
    done = launch(["-m", "lowbit.cli.main", "bench", *arguments, "-o", str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dbllm-ptq") == 1 and done.stdout.count("parent") >= 1
    assert done.stdout.count(" rtn ") == 1
    assert len(list((tmp_path / "out").rglob("results_*.json"))) == 3
    assert len(list((tmp_path / "out" / "checkpoints").glob("*.cost.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("verb", ["quantize", "bench"])
def test_an_error_in_one_process_ends_all(parent: ModelFolder, tmp_path: Path, rank: int, verb: str) -> None:
    plugin = tmp_path / "fails.py"
    plugin.write_text(FAILS_IN_ONE.format(rank=rank))
    more = ("--plugin", str(plugin), "--set", "distillation.loss=fails", "-o", str(tmp_path / "out"))
    if verb == "bench":
        more = (*more, "--tasks", "smallworld_choice", "--limit", "2")
    started = time.monotonic()
    done = launch(["-m", "lowbit.cli.main", verb, *command(parent("llama"), tmp_path, *more)], timeout=150)
    assert time.monotonic() - started < 140
    assert done.returncode != 0
    assert "this process fails" in done.stderr
    assert not list(tmp_path.rglob("lowbit_provenance.json"))


def test_what_the_main_process_refuses_is_told_once(tmp_path: Path) -> None:
    done = launch(["-m", "lowbit.cli.main", "bench", "--method", "rtn", "--tasks", "nosuchtask", "-o", str(tmp_path)])
    assert done.returncode != 0
    assert done.stderr.count("lowbit: error: ") == 1, done.stderr
    assert "unknown task 'nosuchtask'" in done.stderr


def test_a_signal_to_the_launcher_saves_the_step_that_all_processes_reached(
    parent: ModelFolder, tmp_path: Path
) -> None:
    arguments = command(parent("llama"), tmp_path, "--set", "distillation.steps=300", "-o", str(tmp_path / "out"))
    program = ["-m", "lowbit.cli.main", "quantize", *arguments]
    training = tmp_path / "out.partial" / "training"
    with start(program) as running:
        deadline = time.monotonic() + 120
        while not (training / "training.json").exists() and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        signalled = time.monotonic()
        running.send_signal(signal.SIGTERM)
        _, error = running.communicate(timeout=60)
    assert time.monotonic() - signalled < 20
    assert running.returncode != 0
    assert error.count("finished work is kept, and the same command continues from there") >= 1, error
    step = json.loads((training / "training.json").read_text())["step"]
    assert 0 < step < 300
    done = launch(program)
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "alone"
    flags = {"calibration": {"source": str(tmp_path / "tokens.npz")}, **CALIBRATION}
    quantize(parent("llama"), alone, METHOD, **flags, distillation={**SETTINGS, "steps": 300})
    assert curve(tmp_path / "out")["losses"] == curve(alone)["losses"]
    assert_same_weights(tmp_path / "out", alone)
