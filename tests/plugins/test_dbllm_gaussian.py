"""What dual binarization does to Gaussian weights: figures that follow from the method alone.

Errors are in units of the variance. With half a million weights their standard error is about 0.0005; the scales of a
group are stored in float32, and the tolerance 0.003 also covers the steps of the grid search.
"""

from __future__ import annotations

import pytest
import torch
from lowbit_dbllm import DualBinaryWeight, lowbit_diagnostics
from lowbit_dbllm.levels import assign_codes, grid_search, reconstruct
from torch import Tensor

TOLERANCE = 0.003


@pytest.fixture(scope="module")
def gaussian() -> Tensor:
    return torch.randn(1024, 512, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("orientation", "iterations", "expected"),
    [
        ("positive", 0, 0.144),
        ("negative", 0, 0.144),
        ("positive", 20, 0.130),
        ("negative", 20, 0.130),
        ("per-group", 0, 0.124),
        ("per-group", 20, 0.114),
    ],
    ids=["one scale", "mirrored", "free pair", "free pair mirrored", "one scale by group", "free pair by group"],
)
def test_mean_squared_error_in_groups_of_64(
    gaussian: Tensor, quantize: object, orientation: str, iterations: int, expected: float
) -> None:
    dense = quantize(  # type: ignore[operator]
        "fdb", gaussian, orientation=orientation, iterations=iterations, scale_dtype="float32"
    ).dequantize()
    assert (gaussian - dense).square().mean().item() == pytest.approx(expected, abs=TOLERANCE)


def planes_at(weight: Tensor, s: float) -> tuple[Tensor, Tensor]:
    group = weight.reshape(1, 1, -1)
    return assign_codes(group, torch.full((1, 1, 1), 2 * s), torch.full((1, 1, 1), -s))


def error_at(weight: Tensor, s: float) -> float:
    values = reconstruct(*planes_at(weight, s), torch.tensor(2 * s), torch.tensor(-s))
    return (weight.reshape(1, 1, -1) - values).square().mean().item()


def test_the_best_single_scale_is_1_04_standard_deviations(gaussian: Tensor) -> None:
    errors = {s / 100: error_at(gaussian, s / 100) for s in range(80, 132, 2)}
    best = min(errors, key=lambda s: errors[s])
    assert best == pytest.approx(1.04, abs=0.04)
    assert errors[best] == pytest.approx(0.150, abs=0.002)
    assert error_at(gaussian, 1.04) == pytest.approx(0.150, abs=0.002)


def test_grid_search_finds_the_best_single_scale(gaussian: Tensor) -> None:
    ((scale, error),) = grid_search(gaussian.reshape(1, 1, -1), 200)
    assert scale.item() == pytest.approx(1.04, abs=0.04)
    assert error.item() / gaussian.numel() == pytest.approx(0.150, abs=0.002)


@pytest.mark.parametrize(("s", "density1", "density2", "sparsity"), [(1.04, 0.30, 0.54, 0.58), (1.4, 0.24, 0.47, 0.65)])
def test_densities_of_the_planes(gaussian: Tensor, s: float, density1: float, density2: float, sparsity: float) -> None:
    """Half of b2's ones mark -s, the other half +s; the tolerance is that of two rounded decimals."""
    plane1, plane2 = (plane.squeeze(1) for plane in planes_at(gaussian, s))
    weight = DualBinaryWeight(plane1, plane2, torch.tensor([[2 * s]]), torch.tensor([[-s]]), group_size=-1)
    numbers = lowbit_diagnostics(weight)
    assert numbers["plane1_density"] == pytest.approx(density1, abs=0.006)
    assert numbers["plane2_density"] == pytest.approx(density2, abs=0.006)
    assert numbers["sparsity"] == pytest.approx(sparsity, abs=0.006)
    assert numbers["mirrored_groups"] == 0
