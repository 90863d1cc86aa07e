"""Dual binarization with squared errors that count by the mean square of the inputs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_dbllm import FlexibleDualBinarization
from lowbit_dbllm.levels import alternate, assign_codes, grid_search, plane_sums
from torch import Tensor

from lowbit import LayerStatistics, StatisticsNeed


def quantizer(importance: str) -> FlexibleDualBinarization:
    return FlexibleDualBinarization(FlexibleDualBinarization.Config(importance=importance))  # type: ignore[arg-type]


def statistics(moments: Tensor) -> LayerStatistics:
    return LayerStatistics(100, moments)


def weighted_error(weight: Tensor, dense: Tensor, moments: Tensor) -> float:
    return float(((weight - dense).square() * moments).sum())


def test_statistics_are_asked_for_only_where_they_count() -> None:
    assert quantizer("none").needs is StatisticsNeed.NONE
    assert quantizer("second-moment").needs is StatisticsNeed.SECOND_MOMENT


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_the_error_that_counts_is_lower_than_with_equal_importance(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, 200, generator=generator)
    moments = torch.randn(200, generator=generator).mul(1.5).exp()
    errors = [
        weighted_error(weight, quantizer(kind).quantize(weight, statistics(moments), generator).dequantize(), moments)
        for kind in ("second-moment", "none")
    ]
    assert errors[0] < errors[1]


def test_equal_moments_change_nothing() -> None:
    weight = torch.randn(8, 130, generator=torch.Generator().manual_seed(0))
    found = quantizer("second-moment").quantize(weight, statistics(torch.full((130,), 3.0)), torch.Generator())
    expected = quantizer("none").quantize(weight, None, torch.Generator())
    assert torch.equal(found.dequantize(), expected.dequantize())


def test_inputs_that_were_always_zero_and_missing_statistics_do_no_harm() -> None:
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    expected = quantizer("none").quantize(weight, None, torch.Generator()).dequantize()
    for found in (None, statistics(torch.zeros(128))):
        assert torch.equal(quantizer("second-moment").quantize(weight, found, torch.Generator()).dequantize(), expected)
    half = torch.cat([torch.zeros(64), torch.ones(64)])
    dense = quantizer("second-moment").quantize(weight, statistics(half), torch.Generator()).dequantize()
    assert bool(torch.isfinite(dense).all())


def test_plane_sums_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    importance = torch.rand(6, 10, generator=generator, dtype=torch.float64)
    alpha1, alpha2 = torch.full((6, 1), 1.1).double(), torch.full((6, 1), -0.6).double()
    plane1, plane2 = assign_codes(weight, alpha1, alpha2)
    found = plane_sums(weight, alpha1, alpha2, importance)
    for row in range(6):
        pairs = [(float(i), float(w), bool(a), bool(b)) for i, w, a, b in zip(
            importance[row], weight[row], plane1[row], plane2[row], strict=True
        )]  # fmt: skip
        assert float(found.count1[row]) == pytest.approx(sum(i for i, _, a, _ in pairs if a))
        assert float(found.count2[row]) == pytest.approx(sum(i for i, _, _, b in pairs if b))
        assert float(found.both[row]) == pytest.approx(sum(i for i, _, a, b in pairs if a and b))
        assert float(found.sum1[row]) == pytest.approx(sum(i * w for i, w, a, _ in pairs if a))
        assert float(found.sum2[row]) == pytest.approx(sum(i * w for i, w, _, b in pairs if b))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_alternating_never_raises_the_error_that_counts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 3, 32, generator=generator)
    importance = torch.rand(1, 3, 32, generator=generator) + 0.01
    [(scale, _)] = grid_search(weight, 16, (1,), importance)
    errors = [alternate(weight, 2 * scale, -scale, rounds, importance)[2] for rounds in (0, 1, 2, 5, 20)]
    for before, after in pairwise(errors):
        assert bool((after <= before * (1 + 1e-5) + 1e-7).all())
