"""Training as a part of a run: recipes, both ways in turn, kills, losses of others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distillation.small_training import CALIBRATION, METHOD, tokens_file
from safetensors.torch import load_file
from small_models import ModelFolder, make_recipe, quantize

from lowbit.errors import LowbitError
from lowbit.pipeline.quantize import QuantizationOutcome

REPOSITORY = Path(__file__).resolve().parents[2]
RECONSTRUCTION = {"steps": 4, "batch_size": 4}
DISTILLATION = {"steps": 4, "batch_size": 4, "held_out": 2, "evaluate_every": 2}

OUTSIDER = """
from lowbit import DistillationLoss, TokenLoss, hookimpl

class Agreement(DistillationLoss):
    name = "agreement"

    def __call__(self, batch):
        return TokenLoss(-(batch.student_logits.softmax(-1) * batch.teacher_logits.softmax(-1)).sum(-1).log())

@hookimpl
def lowbit_distillation_losses():
    yield Agreement
"""


def train(folder: Path, output: Path, **parts: Any) -> QuantizationOutcome:
    flags = {"calibration": {"source": str(tokens_file(output.parent))}, **CALIBRATION}
    return quantize(folder, output, METHOD, **flags, **parts)


@pytest.mark.parametrize(
    "parts",
    [{"reconstruction"}, {"distillation"}, {"reconstruction", "distillation"}],
    ids=lambda parts: "+".join(sorted(parts)),
)
def test_a_recipe_trains_one_way_or_the_other_or_both(parent: ModelFolder, tmp_path: Path, parts: set[str]) -> None:
    settings = {"reconstruction": RECONSTRUCTION, "distillation": DISTILLATION}
    outcome = train(parent("gpt2"), tmp_path / "out", **{part: settings[part] for part in parts})
    assert outcome.training is not None
    assert parts == outcome.training.keys() & {"reconstruction", "distillation"}
    provenance = json.loads((tmp_path / "out" / "lowbit_provenance.json").read_text())
    assert provenance["training"] == outcome.training
    if "reconstruction" in parts:
        assert [len(block["losses"]) for block in outcome.training["reconstruction"]] == [4, 4, 4]
    if "distillation" in parts:
        curve = outcome.training["distillation"]
        assert len(curve["losses"]) == 4
        assert [step for step, _ in curve["held_out"]] == [0, 2, 4]
        assert curve["best_loss"] == min(loss for _, loss in curve["held_out"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "out.cost.json", "tokens.npz"]


def test_distillation_goes_on_from_the_state_that_reconstruction_ended_with(
    parent: ModelFolder, tmp_path: Path
) -> None:
    train(parent("llama"), tmp_path / "first", reconstruction=RECONSTRUCTION)
    still = {**DISTILLATION, "steps": 1, "weight_rate": 0.0, "scale_rate": 0.0}
    train(parent("llama"), tmp_path / "both", reconstruction=RECONSTRUCTION, distillation=still)
    train(parent("llama"), tmp_path / "second", distillation=still)
    first, both, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "both", "second"))
    assert all(torch.equal(both[name], tensor) for name, tensor in first.items())
    assert any(not torch.equal(second[name], tensor) for name, tensor in first.items())


def run_kills(parent: Path, root: Path, kills: int) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("killed_trainings.py"))]
    command += [str(parent), str(root), str(tokens_file(root)), str(kills)]
    paths = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_training_continues_to_the_same_bytes(parent: ModelFolder, tmp_path: Path, kills: int) -> None:
    found = run_kills(parent("llama"), tmp_path, kills)
    assert found["steps"] == 3 * 4 + 8
    assert len(found["trials"]) == kills
    for trial in found["trials"]:
        assert trial["killed"] == -signal.SIGKILL
        assert "out.partial" in trial["left"] and "out" not in trial["left"]
        assert trial["again"] == 0
        assert trial["identical"]
        assert trial["after"] == ["count", "out", "out.cost.json"]
    in_reconstruction, in_distillation = found["trials"][:2]
    assert in_reconstruction["steps_again"] == 2 * 4 + 8
    assert in_distillation["steps_again"] == 8 - 3


def test_earlier_seconds_of_an_interrupted_training_count(parent: ModelFolder, tmp_path: Path) -> None:
    from lowbit.distillation.training_store import TrainingStore
    from lowbit.pipeline.training import TRAINING

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowbit.pipeline.training.write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            train(parent("llama"), tmp_path / "out", distillation=DISTILLATION)
    store = TrainingStore(tmp_path / "out.partial" / TRAINING)
    record = store.record()
    assert record is not None
    store.save(record["step"], store.tensors(record["step"]), {**record, "seconds": 5000.0})
    outcome = train(parent("llama"), tmp_path / "out", distillation=DISTILLATION)
    assert 5000 < outcome.cost["seconds"] < 5200


def test_a_loss_by_an_outsider_trains_through_the_command_line(parent: ModelFolder, tmp_path: Path) -> None:
    plugin = tmp_path / "agreement.py"
    plugin.write_text(OUTSIDER)
    settings = {"loss": "agreement", **DISTILLATION}
    command = [sys.executable, "-m", "lowbit.cli.main", "quantize", "--model", str(parent("llama")), "--method", METHOD]
    command += ["--plugin", str(plugin), "--calibration", str(tokens_file(tmp_path)), "-o", str(tmp_path / "out")]
    command += ["--set", "training_data.source=calibration"]
    command += [word for key, value in settings.items() for word in ("--set", f"distillation.{key}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    training = json.loads((tmp_path / "out" / "lowbit_provenance.json").read_text())["training"]
    assert len(training["distillation"]["losses"]) == 4
    assert training["distillation"]["held_out"][0][1] > 0


@pytest.mark.parametrize("part", ["reconstruction", "distillation"])
def test_a_quantizer_without_training_is_refused_before_any_work(
    parent: ModelFolder, tmp_path: Path, part: str
) -> None:
    with pytest.raises(LowbitError, match="quantizer rtn offers no training"):
        quantize(parent("llama"), tmp_path / "out", "rtn", **{part: {}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("kll", "kl"),
        ({"name": "kl", "temprature": 2}, "temperature"),
        ({"name": "kl", "temperature": "hot"}, "temperature"),
        ({"name": "kl", "coefficient": -1}, "coefficient"),
        ([], "loss"),
    ],
)
def test_a_loss_that_is_not_known_so_is_refused_with_a_hint(parent: ModelFolder, loss: object, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        make_recipe(parent("llama"), METHOD, distillation={"loss": loss})
