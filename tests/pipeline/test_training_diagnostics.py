"""What a distillation's record holds beside its curve, against the checkpoints before and after."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import VOCABULARY, ModelFolder, load_model, quantize
from torch import Tensor

import lowbit
from lowbit import DistillationBatch, QuantizedWeight, hookimpl
from lowbit.distillation.deviation import measure_deviation, vocabulary_parts
from lowbit.pipeline import make_checkpoint, training
from lowbit.pipeline.quantize import QuantizationOutcome
from lowbit.pipeline.training_diagnostics import DEVIATION_SAMPLES, OUTPUT_TOKENS
from lowbit.registry import PluginSource, registry

LENGTH, SAMPLES, HELD_OUT = 80, 16, 10
TRAINED: dict[str, Any] = {
    "training_data": {"source": "generated", "seq_len": LENGTH, "generated": {"n_samples": SAMPLES}},
    "reconstruction": None,
    "distillation": {
        "steps": 3,
        "batch_size": 2,
        "evaluate_every": 3,
        "held_out": HELD_OUT,
        "loss": "kl",
        "precision": "float32",
    },
}
PATHS = {"path_correlation", "residual_correlation", "relative_output_error"}


class Witness:
    """Keeps what it is asked about."""

    def __init__(self) -> None:
        self.seen: list[tuple[QuantizedWeight, Tensor, Tensor]] = []

    @hookimpl
    def lowbit_output_diagnostics(
        self, quantized: QuantizedWeight, weight: Tensor, inputs: Tensor
    ) -> Mapping[str, float]:
        self.seen.append((quantized, weight.clone(), inputs))
        return {"tokens": float(len(inputs))}


@pytest.fixture
def witness() -> Iterator[Witness]:
    made = Witness()
    registry().register(made, PluginSource("output-witness", f"tests-{id(made)}"))
    yield made
    registry().unregister(made)


@pytest.fixture(scope="module")
def outcome(parent: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> QuantizationOutcome:
    return quantize(parent("llama"), tmp_path_factory.mktemp("distilled") / "trained", "dbllm", **TRAINED)


def record_of(outcome: QuantizationOutcome) -> dict[str, Any]:
    assert outcome.training is not None
    found: dict[str, Any] = outcome.training["distillation"]
    return found


@torch.no_grad()
def deviation_of(checkpoint: Path, parent: Path, generated: Path) -> dict[str, Any]:
    """Compute the deviation of a checkpoint on the first held-out sequences, all tokens at once."""
    (file,) = generated.glob("*.npz")
    tokens = torch.from_numpy(next(iter(np.load(file).values()))).long()
    assert tokens.shape == (SAMPLES, LENGTH)
    held_out = tokens[-HELD_OUT:][:DEVIATION_SAMPLES]
    models = lowbit.load(checkpoint, backend="dense", dtype="float32"), load_model(parent)
    student, teacher = (model(input_ids=held_out).logits[:, :-1].flatten(0, 1) for model in models)
    parts = vocabulary_parts(tokens[:-HELD_OUT, 1:], VOCABULARY)
    return measure_deviation([DistillationBatch(student, teacher, held_out[:, 1:].flatten())], parts).to_dict()


def assert_near(found: Any, expected: Any) -> None:
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_near(found[key], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-3, abs=1e-3) if isinstance(expected, float) else expected)


def test_deviation_before_is_that_of_the_untrained_checkpoint(
    outcome: QuantizationOutcome, parent: ModelFolder, tmp_path: Path
) -> None:
    quantize(parent("llama"), tmp_path / "untrained", "dbllm-ptq")
    expected = deviation_of(tmp_path / "untrained", parent("llama"), outcome.checkpoint.parent / "generated")
    assert_near(record_of(outcome)["deviation"]["before"], expected)


def test_deviation_after_is_that_of_the_trained_checkpoint(outcome: QuantizationOutcome, parent: ModelFolder) -> None:
    expected = deviation_of(outcome.checkpoint, parent("llama"), outcome.checkpoint.parent / "generated")
    deviation = record_of(outcome)["deviation"]
    assert_near(deviation["after"], expected)
    assert deviation["after"]["tokens"] == DEVIATION_SAMPLES * (LENGTH - 1)
    assert deviation["after"] != deviation["before"]


def test_the_summary_is_the_mean_over_the_layers_by_their_weights(outcome: QuantizationOutcome) -> None:
    summary = record_of(outcome)["summary"]
    weights = [layer["weights"] for layer in outcome.layers]
    for when, key in (("before", "untrained"), ("after", "diagnostics")):
        densities = [layer[key]["plane1_density"] for layer in outcome.layers]
        assert summary[when]["plane1_density"] == pytest.approx(np.average(densities, weights=weights))
    assert summary["after"].keys() - summary["before"].keys() == PATHS
    assert -1 <= summary["after"]["path_correlation"] <= 1


def test_every_layer_has_numbers_about_its_outputs_after_training_only(outcome: QuantizationOutcome) -> None:
    for layer in outcome.layers:
        assert layer["diagnostics"].keys() >= PATHS, layer["name"]
        assert not layer["untrained"].keys() & PATHS
        assert 0 < layer["diagnostics"]["relative_output_error"] < 1


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "opt", "deepseek-v3"])
def test_plugins_see_each_layers_inputs_and_the_parents_matrix(
    architecture: str, parent: ModelFolder, tmp_path: Path, witness: Witness
) -> None:
    outcome = quantize(parent(architecture), tmp_path / "trained", "dbllm", **TRAINED)
    asked = [layer for layer in outcome.layers if "tokens" in layer["diagnostics"]]
    assert len(asked) == len(witness.seen)
    fused = [layer for layer in outcome.layers if ".experts." in layer["name"]]
    assert len(asked) >= len(outcome.layers) - len(fused) > 0
    stored = [tensor for tensor in load_model(parent(architecture)).state_dict().values() if tensor.dim() == 2]
    for quantized, weight, inputs in witness.seen:
        assert weight.dtype == inputs.dtype == torch.float32
        assert weight.shape == quantized.shape
        assert inputs.shape[1] == weight.shape[1]
        assert 0 < len(inputs) <= OUTPUT_TOKENS
        assert any(torch.equal(weight, matrix) or torch.equal(weight, matrix.T) for matrix in stored)


def test_finished_blocks_are_not_looked_at_again(
    parent: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="the disk is full"):
        patched.setattr(make_checkpoint, "write_checkpoint", fails)
        quantize(parent("llama"), tmp_path / "trained", "dbllm", **TRAINED)
    stored = json.loads((tmp_path / "trained.partial" / training.DISTILLED / training.RECORD_FILE).read_text())
    monkeypatch.setattr(training, "TrainingDiagnostics", fails)
    outcome = quantize(parent("llama"), tmp_path / "trained", "dbllm", **TRAINED)
    assert record_of(outcome)["deviation"] == stored["deviation"]
    assert all(layer["diagnostics"].keys() >= PATHS for layer in outcome.layers)


def test_block_wise_training_alone_has_no_numbers_about_a_whole_student(parent: ModelFolder, tmp_path: Path) -> None:
    flags = {**TRAINED, "reconstruction": {"steps": 2, "batch_size": 2}, "distillation": None}
    outcome = quantize(parent("llama"), tmp_path / "reconstructed", "dbllm", **flags)
    assert outcome.training is not None and "distillation" not in outcome.training
    assert not any(layer["diagnostics"].keys() & PATHS for layer in outcome.layers)
