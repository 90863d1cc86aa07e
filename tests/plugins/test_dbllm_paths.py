"""Correlations of the two binary paths against NumPy, and where they are undefined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lowbit_dbllm import DualBinaryWeight, lowbit_output_diagnostics
from torch import Tensor

from lowbit import DenseWeight, repeat_groups
from lowbit.registry import registry


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group_size", [-1, 16, 64])
def test_numbers_are_those_of_numpy(quantize: Any, group_size: int) -> None:
    weight, inputs = gaussian(24, 100, seed=0), gaussian(37, 100, seed=1) + 0.3
    quantized = quantize("fdb", weight, group_size=group_size)
    x = inputs.double().numpy()
    paths = []
    for scales, plane in ((quantized.alpha1, quantized.plane1), (quantized.alpha2, quantized.plane2)):
        paths.append(x @ (repeat_groups(scales.double(), group_size, 100) * plane).numpy().T)
    y = x @ weight.double().numpy().T
    error = y - paths[0] - paths[1]
    assert lowbit_output_diagnostics(quantized, weight, inputs) == pytest.approx(
        {
            "path_correlation": np.corrcoef(paths[0].ravel(), paths[1].ravel())[0, 1],
            "residual_correlation": np.corrcoef((y - paths[0]).ravel(), paths[1].ravel())[0, 1],
            "relative_output_error": (error**2).sum() / (y**2).sum(),
        },
        rel=1e-4,
    )


def test_an_exact_weight_has_no_error_and_a_second_path_that_is_the_residual(quantize: Any) -> None:
    weight = torch.randint(-1, 3, (8, 64), generator=torch.Generator().manual_seed(2)) * 0.25
    quantized = quantize("fdb", weight)
    assert torch.equal(quantized.dequantize(), weight)
    numbers = lowbit_output_diagnostics(quantized, weight, gaussian(20, 64, seed=3))
    assert numbers["relative_output_error"] == pytest.approx(0, abs=1e-10)
    assert numbers["residual_correlation"] == pytest.approx(1, abs=1e-6)


def test_paths_of_opposite_sign_over_the_same_bits_are_anticorrelated() -> None:
    plane = torch.rand(6, 32, generator=torch.Generator().manual_seed(4)) < 0.5
    weight = DualBinaryWeight(plane, plane, torch.full((6, 1), 1.0), torch.full((6, 1), -0.5), -1)
    numbers = lowbit_output_diagnostics(weight, gaussian(6, 32, seed=5), gaussian(9, 32, seed=6))
    assert numbers["path_correlation"] == pytest.approx(-1)


def test_undefined_numbers_are_left_out() -> None:
    empty = torch.zeros(3, 16, dtype=torch.bool)
    weight = DualBinaryWeight(empty, empty, torch.zeros(3, 1), torch.zeros(3, 1), -1)
    assert lowbit_output_diagnostics(weight, torch.zeros(3, 16), gaussian(5, 16, seed=7)) == {}
    assert lowbit_output_diagnostics(weight, gaussian(3, 16, seed=8), gaussian(5, 16, seed=7)) == {
        "relative_output_error": 1.0
    }


def test_the_hook_is_registered_and_says_nothing_about_other_formats(quantize: Any) -> None:
    weight, inputs = gaussian(4, 64, seed=9), gaussian(5, 64, seed=10)
    hook = registry().hook.lowbit_output_diagnostics
    merged: dict[str, float] = {}
    for numbers in hook(quantized=quantize("fdb", weight), weight=weight, inputs=inputs):
        merged.update(numbers)
    assert {"path_correlation", "residual_correlation", "relative_output_error"} <= merged.keys()
    assert lowbit_output_diagnostics(DenseWeight(weight, 16.0), weight, inputs) == {}
