"""Round to nearest against an independent reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_baselines import RoundToNearest, UniformWeight
from torch import Tensor

from lowbit.registry import registry

BITS = range(2, 9)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def rtn(quantize: Any) -> Any:
    def run(weight: Tensor, **options: Any) -> UniformWeight:
        quantized = quantize("rtn", weight, **options)
        assert isinstance(quantized, UniformWeight)
        quantized.spec()
        return quantized

    return run


def reference(group: list[float], bits: int, symmetric: bool, scale: float) -> list[float]:
    """Dequantized values of one group for a given stored scale, one weight after the other."""
    top: int = 2**bits - 1
    if scale == 0:
        return [0.0] * len(group)
    lowest = min(0.0, *group)
    zero = (top + 1) // 2 if symmetric else min(max(round(-lowest / scale), 0), top)
    return [scale * (min(max(round(w / scale) + zero, 0), top) - zero) for w in group]


def expected_scale(group: list[float], bits: int, symmetric: bool) -> float:
    top: int = 2**bits - 1
    if symmetric:
        return 2 * max(map(abs, group)) / top
    return (max(0.0, *group) - min(0.0, *group)) / top


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("bits", BITS)
def test_equals_the_reference_in_float64(rtn: Any, bits: int, group_size: int, symmetric: bool) -> None:
    weight = gaussian(3, 40, seed=bits)
    quantized = rtn(weight, bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype="float32")
    size = 40 if group_size == -1 else group_size
    for row in range(3):
        dense = quantized.dequantize()[row].tolist()
        for index, start in enumerate(range(0, 40, size)):
            group = weight[row, start : start + size].tolist()
            scale = quantized.scales[row, index].item()
            assert scale == pytest.approx(expected_scale(group, bits, symmetric), rel=1e-6)
            for w, value, expected in zip(group, dense[start:], reference(group, bits, symmetric, scale), strict=False):
                # The largest weight of a symmetric group lies halfway between two values; either is nearest.
                halfway = symmetric and abs(w) == max(map(abs, group))
                assert abs(w - value) == pytest.approx(abs(w - expected), rel=1e-4, abs=1e-6)
                assert halfway or value == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [2, 4])
def test_codes_are_chosen_with_the_rounded_scale(rtn: Any, bits: int, scale_dtype: str) -> None:
    weight = gaussian(4, 64)
    quantized = rtn(weight, bits=bits, scale_dtype=scale_dtype)
    assert quantized.scales.dtype == getattr(torch, scale_dtype)
    for row in range(4):
        expected = reference(weight[row].tolist(), bits, False, quantized.scales[row, 0].item())
        assert quantized.dequantize()[row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_no_weight_is_further_than_half_a_step_from_its_value(rtn: Any, bits: int, symmetric: bool) -> None:
    """The scale spans the range of the group, so every weight lies inside the grid, give or take its rounded zero."""
    weight = gaussian(16, 172)
    quantized = rtn(weight, bits=bits, symmetric=symmetric, scale_dtype="float32")
    steps = quantized.scales.repeat_interleave(64, 1)[:, :172]
    assert bool(((weight - quantized.dequantize()).abs() <= steps * 0.5001).all())


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.integers(2, 8), st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_half_a_step_is_the_bound_for_any_group(values: list[float], bits: int, symmetric: bool) -> None:
    weight = torch.tensor([values])
    config = RoundToNearest.Config(bits=bits, symmetric=symmetric, group_size=-1, scale_dtype="float32")
    quantized = RoundToNearest(config).quantize(weight, None, torch.Generator())
    step = quantized.scales.item()
    assert (weight - quantized.dequantize()).abs().max().item() <= 0.5001 * step + 1e-30


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_range_includes_zero_even_if_every_weight_has_one_sign(rtn: Any, bits: int, sign: int) -> None:
    weight = sign * (gaussian(2, 64).abs() + 5)
    weight[:, 7] = 0
    dense = rtn(weight, bits=bits).dequantize()
    assert not dense[:, 7].any()
    quantized = rtn(sign * (gaussian(2, 64).abs() + 5), bits=bits)
    assert quantized.zero_points.unique().tolist() == [0 if sign == 1 else 2**bits - 1]


def test_zeros_stay_exactly_zero(rtn: Any) -> None:
    weight = gaussian(8, 128)
    weight[weight.abs() < 0.3] = 0
    for symmetric in (False, True):
        assert not rtn(weight, symmetric=symmetric, bits=3).dequantize()[weight == 0].any()


def test_zero_rows_get_zero_scales_and_codes(rtn: Any) -> None:
    weight = gaussian(3, 70)
    weight[1] = 0
    quantized = rtn(weight)
    assert not quantized.scales[1].any()
    assert not quantized.codes[1].any()
    assert torch.equal(quantized.dequantize()[1], torch.zeros(70))
    assert quantized.scales.dtype == torch.float16


@pytest.mark.parametrize("exponent", [20, -30])
def test_scales_outside_float16_are_stored_as_float32(rtn: Any, exponent: int) -> None:
    weight = gaussian(4, 100)
    plain, scaled = rtn(weight, scale_dtype="float32"), rtn(weight * 2.0**exponent)
    assert scaled.scales.dtype == torch.float32
    assert torch.equal(scaled.dequantize(), plain.dequantize() * 2.0**exponent)


def test_groups_that_do_not_divide_equal_their_parts_alone(rtn: Any) -> None:
    weight = gaussian(5, 172)
    whole = rtn(weight, bits=3)
    parts = [rtn(part.contiguous(), bits=3) for part in torch.split(weight, [64, 64, 44], dim=1)]
    for name in ("codes", "scales", "zero_points"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts], dim=1))


@pytest.mark.parametrize("bits", BITS)
def test_nominal_bits_are_the_bits_of_a_code(rtn: Any, bits: int) -> None:
    assert rtn(gaussian(1, 8), bits=bits).nominal_bits == bits


def test_the_parent_itself_is_a_method_without_a_quantizer() -> None:
    assert registry().method("none").quantizer is None
