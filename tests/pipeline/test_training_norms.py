"""Norms and biases that are trained beside the quantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distillation.small_training import CALIBRATION, METHOD, tokens_file
from safetensors.torch import load_file
from small_models import ModelFolder, quantize
from torch import Tensor

from lowbit.pipeline.load import load

DISTILLATION = {"steps": 3, "batch_size": 4, "held_out": 2, "evaluate_every": 3, "patience": None}


def trained(folder: Path, output: Path, **settings: Any) -> dict[str, Tensor]:
    flags = {"calibration": {"source": str(tokens_file(output.parent))}, **CALIBRATION}
    quantize(folder, output, METHOD, **flags, distillation={**DISTILLATION, **settings})
    return load_file(output / "model.safetensors")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_vectors_of_the_blocks_are_trained_only_when_asked_for(
    parent: ModelFolder, tmp_path: Path, architecture: str
) -> None:
    before = load_file(parent(architecture) / "model.safetensors")
    kept = trained(parent(architecture), tmp_path / "kept")
    moved = trained(parent(architecture), tmp_path / "moved", norm_rate=0.1)
    vectors = [name for name, tensor in kept.items() if tensor.dim() == 1 and name in before and tensor.numel()]
    inside = [name for name in vectors if ".0." in name or ".1." in name or ".2." in name]
    assert inside
    assert all(torch.equal(kept[name], before[name]) for name in vectors)
    # A key's bias shifts all attention scores of a query alike, so that nothing pulls at it.
    assert any(not torch.equal(moved[name], before[name]) for name in inside if "norm" in name or "ln_" in name)
    assert all(torch.equal(moved[name], before[name]) for name in vectors if name not in inside)
    assert {name: tensor.dtype for name, tensor in moved.items()} == {
        name: tensor.dtype for name, tensor in kept.items()
    }
    packed, dense = (load(tmp_path / "moved", backend) for backend in ("packed", "dense"))
    tokens = torch.arange(12).unsqueeze(0)
    torch.testing.assert_close(packed(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-4)
