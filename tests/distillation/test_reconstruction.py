"""Block-wise reconstruction through the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distillation.small_training import METHOD, QUICK_START, tokens_file
from safetensors.torch import load_file
from small_models import ARCHITECTURES, ModelFolder, load_model, quantize

from lowbit.errors import LowbitError
from lowbit.modeling.quant_linear import QuantLinear
from lowbit.pipeline.quantize import QuantizationOutcome

QUICK = ("llama", "gpt2", "mixtral")
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


def reconstruct(folder: Path, output: Path, method: str = METHOD, **settings: Any) -> QuantizationOutcome:
    output.parent.mkdir(exist_ok=True)
    chosen = {"reconstruction": {"steps": 5, "batch_size": 4, **settings}}
    return quantize(folder, output, method, **flags(output.parent, method), **chosen)


def flags(folder: Path, method: str) -> dict[str, Any]:
    start = QUICK_START if method == METHOD else {}
    calibration = {"source": str(tokens_file(folder))}
    return {"calibration": calibration, "training_data": {"source": "calibration"}, "distillation": None, **start}


@pytest.mark.parametrize("architecture", EACH)
def test_training_lowers_the_error_of_every_block(architecture: str, parent: ModelFolder, tmp_path: Path) -> None:
    outcome = reconstruct(parent(architecture), tmp_path / "out")
    assert outcome.training is not None
    blocks = outcome.training["reconstruction"]
    assert len(blocks) == 3
    for block in blocks:
        assert block["kept"] == "trained"
        assert block["loss_after"] < block["loss_before"]
        assert len(block["losses"]) == 5
    assert all(layer["untrained"] for layer in outcome.layers)


def test_errors_are_reported_against_the_parents_own_weights(parent: ModelFolder, tmp_path: Path) -> None:
    outcome = reconstruct(parent("llama"), tmp_path / "out", weight_rate=0.1)
    parents, packed = load_model(parent("llama")), load_model(tmp_path / "out")
    modules = {name: module for name, module in packed.named_modules() if isinstance(module, QuantLinear)}
    assert len(modules) == len(outcome.layers) == 3 * 7
    for layer in outcome.layers:
        name = layer["name"].removesuffix(".weight")
        weight = parents.get_submodule(name).weight.detach()
        error = float((weight - modules[name].dequantize()).square().sum() / weight.square().sum())
        assert layer["relative_error"] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("method", [METHOD, "lsq-ptq", "pbllm-qat"])
def test_a_block_that_training_makes_worse_stays_as_it_was_quantized(
    parent: ModelFolder, tmp_path: Path, method: str
) -> None:
    worse = {"weight_rate": 3.0, "scale_rate": 3.0, "explosion": 1e9, "warmup": 0.0}
    outcome = reconstruct(parent("llama"), tmp_path / "out", method, **worse)
    assert outcome.training is not None
    for block in outcome.training["reconstruction"]:
        assert block["kept"] == "untrained"
        assert not block["loss_after"] < block["loss_before"]
    quantize(parent("llama"), tmp_path / "plain", method, **flags(tmp_path, method))
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("reference", ["parent", "inputs"])
def test_only_the_first_samples_are_trained_on_and_either_reference_serves(
    parent: ModelFolder, tmp_path: Path, reference: str
) -> None:
    outcome = reconstruct(parent("opt"), tmp_path / "out", reference=reference, n_samples=2, batch_size=2)
    assert outcome.training is not None
    assert all(block["kept"] == "trained" for block in outcome.training["reconstruction"])


def test_bfloat16_stays_near_float32(parent: ModelFolder, tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        outcome = reconstruct(parent("gemma3"), tmp_path / precision / "out", precision=precision, steps=3)
        assert outcome.training is not None
        losses[precision] = [block["loss_after"] for block in outcome.training["reconstruction"]]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["bfloat16"] != losses["float32"]


def test_divergence_names_the_block_and_keeps_what_was_finished(parent: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match=r"block 0 diverged in step \d+ of 30: .*weight_rate"):
        reconstruct(parent("llama"), tmp_path / "out", steps=30, weight_rate=1e30, scale_rate=1e30, warmup=0.0)
    signature = json.loads((tmp_path / "out.partial" / "signature.json").read_text())
    assert signature
    assert not (tmp_path / "out").exists()
