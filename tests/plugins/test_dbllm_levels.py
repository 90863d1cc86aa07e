"""The arithmetic of dual binarization against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_dbllm import DualBinaryWeight
from lowbit_dbllm.levels import (
    PlaneSums,
    alternate,
    assign_codes,
    grid_search,
    is_ordered,
    plane_sums,
    reconstruct,
    squared_error,
)
from torch import Tensor

quick = settings(max_examples=100, deadline=None, derandomize=True)
finite = st.floats(-4, 4, allow_nan=False, width=32)


@st.composite
def ordered_scales(draw: st.DrawFn) -> tuple[float, float]:
    """A pair with alpha2 < 0 < alpha1 + alpha2 < alpha1."""
    alpha1 = draw(st.floats(0.05, 3))
    return alpha1, -alpha1 * draw(st.floats(0.02, 0.98))


def column(value: float) -> Tensor:
    return torch.tensor([[[value]]], dtype=torch.float64)


def grouped(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1)


def nearest_distance(weight: Tensor, alpha1: float, alpha2: float) -> Tensor:
    levels = torch.tensor([alpha2, 0, alpha1 + alpha2, alpha1], dtype=torch.float64)
    return (weight.unsqueeze(-1) - levels).abs().amin(-1)


def gaussian_groups(rows: int = 40, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_four_levels_and_their_bits() -> None:
    planes1 = torch.tensor([[False, False, True, True]])
    planes2 = torch.tensor([[True, False, True, False]])
    weight = DualBinaryWeight(planes1, planes2, torch.tensor([[1.3]]), torch.tensor([[-0.9]]), group_size=4)
    assert weight.dequantize().tolist() == [pytest.approx([-0.9, 0, 0.4, 1.3])]
    assert weight.nominal_bits == 2


def test_the_starting_levels_are_minus_s_zero_s_and_two_s() -> None:
    s = 0.5
    weight = DualBinaryWeight(
        torch.tensor([[False, False, True, True]]),
        torch.tensor([[True, False, True, False]]),
        torch.tensor([[2 * s]]),
        torch.tensor([[-s]]),
        group_size=4,
    )
    assert weight.dequantize().tolist() == [[-s, 0, s, 2 * s]]


@pytest.mark.parametrize(("alpha1", "alpha2"), [(2.0, -1.0), (1.3, -0.9)])
def test_thresholds_lie_at_half_alpha2_half_the_sum_and_alpha1_plus_half_alpha2(alpha1: float, alpha2: float) -> None:
    thresholds = [alpha2 / 2, (alpha1 + alpha2) / 2, alpha1 + alpha2 / 2]
    levels = [alpha2, 0, alpha1 + alpha2, alpha1]
    for position, threshold in enumerate(thresholds):
        weight = grouped([threshold - 1e-9, threshold + 1e-9])
        codes = assign_codes(weight, column(alpha1), column(alpha2))
        below, above = reconstruct(*codes, column(alpha1), column(alpha2)).flatten().tolist()
        assert below == pytest.approx(levels[position])
        assert above == pytest.approx(levels[position + 1])


@pytest.mark.parametrize(("alpha1", "alpha2"), [(2.0, -1.0), (1.3, -0.9)])
def test_the_step_functions_round_to_the_nearest_level_on_a_fine_grid(alpha1: float, alpha2: float) -> None:
    weight = torch.linspace(-3, 4, 70_001, dtype=torch.float64).reshape(1, 1, -1)
    codes = assign_codes(weight, column(alpha1), column(alpha2))
    distance = (weight - reconstruct(*codes, column(alpha1), column(alpha2))).abs()
    assert torch.allclose(distance, nearest_distance(weight, alpha1, alpha2), rtol=0, atol=1e-12)


@given(ordered_scales(), st.lists(finite, min_size=1, max_size=30))
@quick
def test_the_step_functions_round_to_the_nearest_level_for_every_ordered_pair(
    pair: tuple[float, float], values: list[float]
) -> None:
    alpha1, alpha2 = pair
    weight = grouped(values)
    assert bool(is_ordered(column(alpha1), column(alpha2)).all())
    codes = assign_codes(weight, column(alpha1), column(alpha2))
    distance = (weight - reconstruct(*codes, column(alpha1), column(alpha2))).abs()
    assert torch.allclose(distance, nearest_distance(weight, alpha1, alpha2), rtol=0, atol=1e-12)


def test_the_step_functions_are_not_nearest_level_rounding_once_the_order_is_broken() -> None:
    alpha1, alpha2 = column(1.0), column(-1.5)
    assert not bool(is_ordered(alpha1, alpha2).any())
    weight = grouped([-0.2])
    codes = assign_codes(weight, alpha1, alpha2)
    distance = (weight - reconstruct(*codes, alpha1, alpha2)).abs()
    assert distance.item() == pytest.approx(0.3)
    assert nearest_distance(weight, 1.0, -1.5).item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("alpha1", "alpha2", "ordered"),
    [(2, -1, True), (1.3, -0.9, True), (1, -1, False), (1, -1.5, False), (1, 0.5, False), (0, 0, False), (1, 0, False)],
)
def test_order_of_the_levels(alpha1: float, alpha2: float, ordered: bool) -> None:
    assert bool(is_ordered(column(alpha1), column(alpha2))) is ordered
    assert ordered is (alpha2 < 0 < alpha1 + alpha2 < alpha1)


def test_nan_scales_are_never_ordered() -> None:
    assert not bool(is_ordered(column(float("nan")), column(-1.0)))
    assert not bool(is_ordered(column(1.0), column(float("nan"))))


@given(st.lists(finite, min_size=1, max_size=24), st.integers(2, 40))
@quick
def test_grid_search_equals_brute_force_over_its_candidates(values: list[float], candidates: int) -> None:
    weight = grouped(values)
    largest = max(abs(value) for value in values)
    errors = {}
    for fraction in [0.5, *torch.linspace(1 / 16, 1, candidates - 1).tolist()]:
        s = largest * fraction
        errors[s] = sum(min((value - level) ** 2 for level in (-s, 0, s, 2 * s)) for value in values)
    ((scale, error),) = grid_search(weight, candidates)
    assert error.item() == pytest.approx(min(errors.values()), rel=1e-9, abs=1e-15)
    assert errors[min(errors, key=lambda s: abs(s - scale.item()))] == pytest.approx(error.item(), rel=1e-9, abs=1e-15)


def test_grid_search_is_never_worse_than_the_min_max_scale() -> None:
    weight = gaussian_groups()
    half = weight.abs().amax(-1, keepdim=True) / 2
    minmax = squared_error(weight, *assign_codes(weight, 2 * half, -half), 2 * half, -half)
    for candidates in (2, 3, 32):
        assert bool((grid_search(weight, candidates)[0][1] <= minmax * (1 + 1e-12)).all())


def lstsq(weight: Tensor, plane1: Tensor, plane2: Tensor) -> Tensor:
    planes = torch.stack([plane1, plane2], dim=-1).double()  # [rows, groups, group_size, 2]
    solution: Tensor = torch.linalg.lstsq(planes, weight.unsqueeze(-1)).solution
    return solution.squeeze(-1)  # [rows, groups, 2]


def sums_of(weight: Tensor, plane1: Tensor, plane2: Tensor) -> PlaneSums:
    first, second = plane1.to(weight.dtype), plane2.to(weight.dtype)
    pairs = (first, second, first * second, first * weight, second * weight)
    return PlaneSums(*(values.sum(-1, keepdim=True) for values in pairs))


def test_least_squares_scales_equal_lapack() -> None:
    weight = gaussian_groups()
    plane1, plane2 = assign_codes(weight, torch.full((40, 2, 1), 2.0), torch.full((40, 2, 1), -1.0))
    alpha1, alpha2 = sums_of(weight, plane1, plane2).scales()
    assert torch.allclose(torch.cat([alpha1, alpha2], -1), lstsq(weight, plane1, plane2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("plane1", "plane2"),
    [([0, 0, 0], [1, 0, 1]), ([1, 0, 1], [0, 0, 0]), ([1, 1, 0], [1, 1, 0]), ([0, 0, 0], [0, 0, 0])],
)
def test_singular_normal_equations_give_nan(plane1: list[int], plane2: list[int]) -> None:
    planes = [torch.tensor([[plane]], dtype=torch.bool) for plane in (plane1, plane2)]
    assert all(scale.isnan().all() for scale in sums_of(grouped([1.0, 2.0, 3.0]), *planes).scales())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [1e-9, 1.0, 1e9])
def test_sums_by_thresholds_are_the_sums_over_the_planes(magnitude: float, dtype: torch.dtype) -> None:
    weight = (gaussian_groups() * magnitude).to(dtype).flatten(0, 1)
    alpha1, alpha2 = (
        torch.full((80, 1), 1.3 * magnitude, dtype=dtype),
        torch.full((80, 1), -0.6 * magnitude, dtype=dtype),
    )
    planes = assign_codes(weight, alpha1, alpha2)
    found, expected = plane_sums(weight, alpha1, alpha2), sums_of(weight, *planes)
    for name in ("count1", "count2", "both"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for name in ("sum1", "sum2"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5 * magnitude)
    explained = weight.square().sum(-1, keepdim=True) - squared_error(weight, *planes, alpha1, alpha2)
    assert torch.allclose(found.explained(alpha1, alpha2), explained, rtol=1e-4, atol=1e-4 * magnitude**2)


def test_the_mirrored_orientation_is_the_plain_one_of_the_negative_weights() -> None:
    weight = gaussian_groups()
    both = grid_search(weight, 32, (1, -1))
    for (scale, error), oriented in zip(both, (weight, -weight), strict=True):
        ((alone, alone_error),) = grid_search(oriented, 32)
        assert torch.equal(scale, alone)
        assert torch.equal(error, alone_error)


@given(st.lists(finite, min_size=1, max_size=40), ordered_scales(), st.integers(0, 12))
@quick
def test_alternation_never_raises_the_error_and_keeps_the_order(
    values: list[float], start: tuple[float, float], iterations: int
) -> None:
    weight = grouped(values)
    alpha1, alpha2 = column(start[0]), column(start[1])
    before = squared_error(weight, *assign_codes(weight, alpha1, alpha2), alpha1, alpha2)
    new1, new2, error = alternate(weight, alpha1, alpha2, iterations)
    _, _, one_more = alternate(weight, alpha1, alpha2, iterations + 1)
    assert error.item() <= before.item()
    assert one_more.item() <= error.item()
    assert bool(is_ordered(new1, new2).all())
    recomputed = squared_error(weight, *assign_codes(weight, new1, new2), new1, new2)
    assert error.item() == pytest.approx(recomputed.item(), rel=1e-12, abs=1e-15)


def test_each_group_alternates_as_if_it_were_alone() -> None:
    weight = gaussian_groups(rows=6)
    ((scale, _),) = grid_search(weight, 32)
    together = alternate(weight, 2 * scale, -scale, 20)
    for row in range(6):
        alone = alternate(weight[row : row + 1], 2 * scale[row : row + 1], -scale[row : row + 1], 20)
        assert all(torch.allclose(a[row : row + 1], b, rtol=1e-12) for a, b in zip(together, alone, strict=True))


def test_the_fixed_point_solves_the_normal_equations() -> None:
    weight = gaussian_groups(rows=100)
    ((scale, _),) = grid_search(weight, 32)
    alpha1, alpha2, _ = alternate(weight, 2 * scale, -scale, 1000)
    solution = lstsq(weight, *assign_codes(weight, alpha1, alpha2))
    ordered = is_ordered(solution[..., :1], solution[..., 1:])
    assert ordered.double().mean() > 0.95
    found = torch.cat([alpha1, alpha2], -1)
    assert torch.allclose(found[ordered.squeeze(-1)], solution[ordered.squeeze(-1)], rtol=1e-9, atol=1e-10)
