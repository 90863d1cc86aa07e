"""Flexible Dual Binarization of whole matrices: orientation, groups, stored scales and degenerate weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowbit_dbllm import BitPlanePacker, DualBinaryWeight
from lowbit_dbllm.quantizer import _ordered_dtype
from torch import Tensor

from lowbit import GroupSize, Packer, QuantizedWeight, repeat_groups, to_groups
from lowbit.packing import GenericPacker


@pytest.fixture
def fdb(quantize: Any) -> Any:
    def run(weight: Tensor, **options: Any) -> DualBinaryWeight:
        quantized = quantize("fdb", weight, **options)
        assert isinstance(quantized, DualBinaryWeight)
        quantized.spec()
        return quantized

    return run


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(first: QuantizedWeight, second: QuantizedWeight) -> bool:
    pairs = zip(first.tensors().values(), second.tensors().values(), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_minmax_starts_from_half_of_the_largest_magnitude(fdb: Any) -> None:
    weight = gaussian(5, 128)
    quantized = fdb(weight, scale_init="minmax", orientation="positive", scale_dtype="float32")
    s = to_groups(weight, 64).abs().amax(-1) / 2
    assert torch.equal(quantized.alpha1, 2 * s)
    assert torch.equal(quantized.alpha2, -s)


def test_mse_without_iterations_ties_alpha1_to_minus_twice_alpha2(fdb: Any) -> None:
    quantized = fdb(gaussian(5, 128), iterations=0)
    assert torch.equal(quantized.alpha1, -2 * quantized.alpha2)


@pytest.mark.parametrize("scale_init", ["minmax", "mse"])
def test_the_mirrored_orientation_is_the_plain_one_on_negated_weights(fdb: Any, scale_init: str) -> None:
    weight = gaussian(9, 130)
    mirrored = fdb(weight, scale_init=scale_init, orientation="negative")
    plain = fdb(-weight, scale_init=scale_init, orientation="positive")
    assert torch.equal(mirrored.plane1, plain.plane1)
    assert torch.equal(mirrored.plane2, plain.plane2)
    assert torch.equal(mirrored.alpha1, -plain.alpha1)
    assert torch.equal(mirrored.alpha2, -plain.alpha2)


def test_the_orientation_of_each_group_is_the_better_one(fdb: Any) -> None:
    weight = gaussian(20, 192)

    def errors(orientation: str) -> Tensor:
        dense = fdb(weight, orientation=orientation, scale_dtype="float32").dequantize()
        return to_groups((weight - dense).square(), 64).sum(-1)

    best = torch.minimum(errors("positive"), errors("negative"))
    assert torch.allclose(errors("per-group"), best, rtol=1e-5)


def test_weights_on_a_mirrored_grid_are_recovered_with_negative_alpha1(fdb: Any) -> None:
    codes = torch.randint(-2, 2, (4, 64), generator=torch.Generator().manual_seed(1)).float()
    quantized = fdb(codes * 0.25)
    assert torch.equal(quantized.dequantize(), codes * 0.25)
    assert bool((quantized.alpha1 < 0).all())


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("orientation", ["positive", "negative", "per-group"])
@pytest.mark.parametrize("scale_init", ["minmax", "mse"])
def test_codes_are_the_nearest_levels_of_the_stored_scales(
    fdb: Any, scale_dtype: str, orientation: str, scale_init: str
) -> None:
    weight = gaussian(6, 172, seed=3)
    quantized = fdb(weight, scale_dtype=scale_dtype, orientation=orientation, scale_init=scale_init)
    assert quantized.alpha1.dtype == quantized.alpha2.dtype == getattr(torch, scale_dtype)
    first, second = (repeat_groups(scale.double(), 64, 172) for scale in (quantized.alpha1, quantized.alpha2))
    levels = torch.stack([second, torch.zeros_like(first), first + second, first], dim=-1)  # [out, in, 4]
    nearest = (weight.double().unsqueeze(-1) - levels).abs().amin(-1)
    assert torch.allclose((weight - quantized.dequantize()).abs().double(), nearest, rtol=0, atol=1e-6)


def test_scales_are_rounded_before_codes_are_chosen(fdb: Any) -> None:
    """In bfloat16 the levels move far enough that some codes of the exact scales are no longer nearest."""
    weight = gaussian(64, 512, seed=5)
    exact, rounded = fdb(weight, scale_dtype="float32"), fdb(weight, scale_dtype="bfloat16")
    assert not torch.equal(exact.plane2, rounded.plane2)
    stale = DualBinaryWeight(exact.plane1, exact.plane2, rounded.alpha1, rounded.alpha2, 64)
    better = (weight - rounded.dequantize()).square().sum()
    assert better < (weight - stale.dequantize()).square().sum()


@pytest.mark.parametrize(("group_size", "bits"), [(64, 2.5), (128, 2.25)])
@pytest.mark.parametrize("packer", [GenericPacker(), BitPlanePacker()], ids=lambda p: p.name)
def test_bits_counted_from_packed_bytes(fdb: Any, packer: Packer, group_size: GroupSize, bits: float) -> None:
    weight = gaussian(16, 512)
    packed = packer.pack(fdb(weight, group_size=group_size))
    assert 8 * sum(tensor.nbytes for tensor in packed.tensors.values()) / weight.numel() == bits
    assert bits == 2 + 32 / group_size


@pytest.mark.parametrize("scale_init", ["minmax", "mse"])
def test_groups_of_64_in_172_columns_equal_the_parts_of_64_64_and_44_quantized_alone(fdb: Any, scale_init: str) -> None:
    weight = gaussian(12, 172)
    whole = fdb(weight, scale_init=scale_init)
    parts = [fdb(part.contiguous(), scale_init=scale_init) for part in torch.split(weight, [64, 64, 44], dim=1)]
    for name in ("plane1", "plane2", "alpha1", "alpha2"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts], dim=1))


def test_whole_row_groups_equal_a_group_size_of_the_row_length(fdb: Any) -> None:
    weight = gaussian(7, 100)
    rows, columns, beyond = (fdb(weight, group_size=size) for size in (-1, 100, 4096))
    assert rows.alpha1.shape == (7, 1)
    assert same(rows, columns)
    assert same(rows, beyond)


def test_rows_are_quantized_independently(fdb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.quantization import groups

    weight = gaussian(11, 96)
    whole = fdb(weight)
    monkeypatch.setattr(groups, "CHUNK_ELEMENTS", 200)
    assert same(whole, fdb(weight))


def test_zero_rows_become_zero_planes_and_zero_scales(fdb: Any) -> None:
    weight = gaussian(4, 70)
    weight[1] = 0
    weight[2, 64:] = 0
    quantized = fdb(weight)
    assert quantized.alpha1.dtype == torch.float16
    for rows in (quantized.dequantize()[1], quantized.dequantize()[2, 64:]):
        assert torch.equal(rows, torch.zeros_like(rows))
    assert not quantized.plane1[1].any()
    assert not quantized.plane2[1].any()
    assert not quantized.alpha1[1].any()


@pytest.mark.parametrize("value", [0.375, -0.375, 1024.0, -3.0])
@pytest.mark.parametrize(
    ("scale_init", "orientation"),
    [("mse", "positive"), ("mse", "negative"), ("mse", "per-group"), ("minmax", "per-group")],
)
def test_constant_rows_are_exact(fdb: Any, value: float, scale_init: str, orientation: str) -> None:
    weight = torch.full((3, 65), value)
    assert torch.equal(fdb(weight, scale_init=scale_init, orientation=orientation).dequantize(), weight)


@pytest.mark.parametrize(("value", "orientation"), [(-3.0, "positive"), (3.0, "negative")])
def test_minmax_reaches_only_half_as_far_against_its_orientation(fdb: Any, value: float, orientation: str) -> None:
    weight = torch.full((3, 65), value)
    assert torch.equal(fdb(weight, scale_init="minmax", orientation=orientation).dequantize(), weight / 2)


def test_one_column_matrices_are_exact_with_float32_scales(fdb: Any) -> None:
    weight = gaussian(50, 1)
    assert torch.equal(fdb(weight, scale_dtype="float32").dequantize(), weight)


@pytest.mark.parametrize("exponent", [20, -30])
def test_weights_that_float16_cannot_scale_get_float32_scales_and_lose_nothing(fdb: Any, exponent: int) -> None:
    """A power of two changes no digit: about 1e6 and 1e-9."""
    weight = gaussian(6, 130)
    plain = fdb(weight, scale_dtype="float32")
    scaled = fdb(weight * 2.0**exponent)
    assert scaled.alpha1.dtype == scaled.alpha2.dtype == torch.float32
    assert torch.equal(scaled.dequantize(), plain.dequantize() * 2.0**exponent)


@pytest.mark.parametrize("magnitude", [1e6, 1e-9])
@pytest.mark.parametrize("packer", [GenericPacker(), BitPlanePacker()], ids=lambda p: p.name)
def test_float32_scales_are_counted_and_survive_packing(fdb: Any, packer: Packer, magnitude: float) -> None:
    weight = gaussian(4, 128) * magnitude
    quantized = fdb(weight)
    packed = packer.pack(quantized)
    assert 8 * sum(tensor.nbytes for tensor in packed.tensors.values()) / weight.numel() == 2 + 64 / 64
    assert same(packer.unpack(packed, DualBinaryWeight), quantized)


@pytest.mark.parametrize("magnitude", [1e30, 3e38, 1e-25, 1e-38, 1e-44])
def test_extreme_weights_never_give_nan(fdb: Any, magnitude: float) -> None:
    quantized = fdb(gaussian(4, 64).clamp(-1, 1) * magnitude)
    assert bool(torch.isfinite(quantized.dequantize()).all())


def test_an_outlier_does_not_spoil_its_neighbour_group(fdb: Any) -> None:
    weight = gaussian(1, 128)
    spoiled = weight.clone()
    spoiled[0, 0] = 1000.0
    assert torch.equal(fdb(weight).dequantize()[:, 64:], fdb(spoiled).dequantize()[:, 64:])


def test_scales_whose_rounding_would_break_the_order_stay_float32() -> None:
    alpha1, alpha2 = torch.tensor([[1.0, 2.0]]), torch.tensor([[-0.999, -1.0]])
    assert alpha2.bfloat16()[0, 0] == -1
    assert _ordered_dtype("bfloat16", alpha1, alpha2) == torch.float32
    assert _ordered_dtype("bfloat16", -alpha1, -alpha2) == torch.float32
    assert _ordered_dtype("float16", alpha1, alpha2) == torch.float16
    assert _ordered_dtype("bfloat16", torch.zeros(1, 1), torch.zeros(1, 1)) == torch.bfloat16
