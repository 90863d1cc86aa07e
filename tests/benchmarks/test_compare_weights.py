"""Weights of two programs, compared matrix by matrix."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from small_models import ModelFolder

import lowbit

BENCHMARK = "compare_weights"


def test_a_weight_counts_as_equal_within_the_tolerance(benchmark_module: ModuleType) -> None:
    theirs = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    ours = theirs + torch.tensor([[1.9e-4, 0.0], [2.1e-4, -1.0]])
    assert benchmark_module.equal_share(ours, theirs) == 0.5


def test_every_matrix_is_listed_under_its_block(
    benchmark_module: ModuleType, parent: ModelFolder, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "quantized"
    lowbit.quantize(str(parent("llama")), "rtn", checkpoint)
    model = lowbit.load(checkpoint, backend="dense", dtype="float32")
    names = [f"model.layers.{block}.mlp.{part}.weight" for block in (0, 1) for part in ("up_proj", "down_proj")]
    weights = {name: model.get_parameter(name).detach().clone() for name in names}
    weights[names[3]] += 1
    save_file(weights, tmp_path / "other.safetensors")
    shares = benchmark_module.shares_by_block(checkpoint, tmp_path / "other.safetensors")
    assert shares == {
        0: {"mlp.up_proj": 1, "mlp.down_proj": 1},
        1: {"mlp.up_proj": 1, "mlp.down_proj": pytest.approx(0)},
    }
