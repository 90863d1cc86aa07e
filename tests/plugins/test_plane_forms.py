"""Every shipped format as sums of scaled bit planes: the planes stand for the same matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_baselines.affine import AffineWeight
from lowbit_baselines.uniform import OrderedUniformWeight, UniformWeight
from lowbit_billm import ResidualBinaryWeight
from lowbit_dbllm.format import DualBinaryWeight
from lowbit_pbllm import IndexedPartialBinaryWeight, PartialBinaryWeight
from lowbit_pbllm.format import PartialBinary
from lowbit_pbllm.gaps import encode_gaps
from plugins.matrices import each_shape, each_special, gaussian, special_weights
from torch import Tensor

from lowbit import PlaneForm, QuantizedWeight
from lowbit.registry import registry

TOLERANCE = 1e-6
"""Of the largest magnitude in a row."""
WITHOUT = {"dense"}
"""Formats that are no sums of bit planes."""
QUANTIZERS = sorted(set(registry().table("weight quantizer")))
METHODS = [method.name for method in registry().methods() if method.quantizer is not None]
SHARES = [0.0, 0.15, 1.0]


class Draw:
    """Random fields of a format.

    Args:
        shape: Rows and columns.
        group_size: Columns a group or block.
        share: Part of the weights or columns that is salient.
        seed: Decides everything.
        kind: Which of a format's variants.
    """

    def __init__(self, shape: tuple[int, int], group_size: int, share: float, seed: int, kind: int) -> None:
        self.shape, self.group_size, self.share, self.kind = shape, group_size, share, kind
        self.generator = torch.Generator().manual_seed(seed)
        self.groups = 1 if group_size == -1 else -(-shape[1] // group_size)
        self.dtype = (torch.float16, torch.bfloat16, torch.float32)[seed % 3]

    def bits(self, *size: int, share: float = 0.5) -> Tensor:
        return torch.rand(size, generator=self.generator) < share

    def codes(self, bits: int, *size: int) -> Tensor:
        return torch.randint(2**bits, size, generator=self.generator).to(torch.uint8)

    def scales(self, *size: int) -> Tensor:
        return (torch.rand(size, generator=self.generator) + 0.1).to(self.dtype)

    def numbers(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator).to(self.dtype)


def dual_binary(draw: Draw) -> QuantizedWeight:
    grid = (draw.shape[0], draw.groups)
    planes = draw.bits(*draw.shape), draw.bits(*draw.shape)
    return DualBinaryWeight(*planes, draw.scales(*grid), -draw.scales(*grid), draw.group_size)


def uniform(draw: Draw) -> QuantizedWeight:
    bits, grid = 1 + draw.kind % 3, (draw.shape[0], draw.groups)
    fields = draw.codes(bits, *draw.shape), draw.scales(*grid), draw.codes(bits, *grid)
    return UniformWeight(*fields, bits, draw.group_size)


def uniform_ordered(draw: Draw) -> QuantizedWeight:
    bits, groups = 1 + draw.kind % 3, 1 + draw.kind % 5
    grid = (draw.shape[0], groups)
    index = torch.randint(groups, (draw.shape[1],), generator=draw.generator, dtype=torch.int32)
    fields = draw.codes(bits, *draw.shape), draw.scales(*grid), draw.codes(bits, *grid)
    return OrderedUniformWeight(*fields, bits, draw.group_size, index)


def uniform_affine(draw: Draw) -> QuantizedWeight:
    bits, grid = 1 + draw.kind % 3, (draw.shape[0], draw.groups)
    fields = draw.codes(bits, *draw.shape), draw.scales(*grid), draw.numbers(*grid)
    return AffineWeight(*fields, bits, draw.group_size)


def partial_binary(draw: Draw, indexed: bool = False) -> QuantizedWeight:
    bits, (out, columns), salient = 2 + draw.kind % 7, draw.shape, draw.bits(*draw.shape, share=draw.share)
    fields: dict[str, Any] = {
        "signs": draw.bits(out, columns),
        "codes": draw.codes(bits - 1, int(salient.sum())),
        "scales": draw.scales(out, draw.groups),
        "means": draw.numbers(out, draw.groups),
        "salient_scales": draw.scales(out),
        "salient_zero_points": draw.codes(bits, out),
        "group_size": draw.group_size,
        "high_bits": bits,
        "stored_bits": bits - 1,
    }
    if indexed:
        return IndexedPartialBinaryWeight(**fields, gaps=encode_gaps(salient, 4), gap_bits=4)
    return PartialBinaryWeight(**fields, salient_mask=salient)


def partial_binary_indexed(draw: Draw) -> QuantizedWeight:
    return partial_binary(draw, indexed=True)


def residual_binary(draw: Draw) -> QuantizedWeight:
    grouped, with_means, with_columns, own_columns = (bool(draw.kind >> bit & 1) for bit in range(4))
    out, columns = draw.shape
    block = columns if draw.group_size == -1 else draw.group_size
    flags = draw.bits(columns, share=draw.share)
    members = int(flags.sum()) if grouped else 0
    zones = 2 if grouped else 1
    own = 2 if grouped and with_columns and own_columns else 0
    return ResidualBinaryWeight(
        signs=draw.bits(out, columns),
        shared_plane=draw.bits(out, columns),
        salient_columns=flags,
        salient_groups=draw.bits(out, members),
        scales=draw.scales(2 + 2 * zones, out, draw.groups),
        means=draw.numbers(2 + zones if with_means else 0, out, draw.groups),
        column_scales=draw.scales(2 if with_columns else 0, columns),
        salient_column_scales=draw.scales(own, members),
        block_size=block,
    )


RANDOM: dict[str, Callable[[Draw], QuantizedWeight]] = {
    "dual-binary": dual_binary,
    "uniform": uniform,
    "uniform-ordered": uniform_ordered,
    "uniform-affine": uniform_affine,
    "partial-binary": partial_binary,
    "partial-binary-indexed": partial_binary_indexed,
    "residual-binary": residual_binary,
}
each_format = pytest.mark.parametrize("name", RANDOM)


def assert_planes_stand_for(weight: QuantizedWeight) -> PlaneForm:
    form = weight.plane_form()
    assert form is not None
    assert_well_formed(form, weight.shape)
    dense, planes = weight.dequantize(), form.dense()
    assert planes.dtype == torch.float32
    assert planes.shape == dense.shape
    limit = TOLERANCE * terms(weight).clamp(min=torch.finfo(torch.float32).tiny)  # [out, 1]
    assert bool(((planes - dense).abs() <= limit).all()), ((planes - dense).abs() / limit).max()
    return form


def terms(weight: QuantizedWeight) -> Tensor:
    """Largest magnitude of each row [out, 1], of a weight or of a number that the format itself adds up to it."""
    largest = weight.dequantize().abs().amax(1, keepdim=True)
    for added in addends(weight):
        by_row = added.float().abs().unsqueeze(0).flatten(0, -3).amax((0, 2)) if added.numel() else 0 * largest[:, 0]
        largest = largest.maximum(by_row.unsqueeze(1))
    return largest


def addends(weight: QuantizedWeight) -> list[Tensor]:
    """What may cancel in the sums of a format, [..., out, groups] each."""
    if isinstance(weight, AffineWeight):
        return [weight.offsets]
    if isinstance(weight, PartialBinary):
        return [weight.means]
    if isinstance(weight, ResidualBinaryWeight):
        columns = max((float(part.max()) for part in columns_of(weight) if part.numel()), default=1.0)
        return [weight.means, weight.scales.float() * columns]
    return []


def columns_of(weight: ResidualBinaryWeight) -> tuple[Tensor, Tensor]:
    return weight.column_scales, weight.salient_column_scales


def assert_well_formed(form: PlaneForm, shape: tuple[int, int]) -> None:
    out, length = form.shape
    assert form.shape == shape
    assert form.parts
    for part in form.parts:
        assert 1 <= len(part.planes) <= 3
        columns = part.planes[0].shape[1]
        groups = -(-columns // part.group_size)
        assert all(plane.dtype == torch.bool and plane.shape == (out, columns) for plane in part.planes)
        assert part.scales.shape == (len(part.planes), out, groups)
        assert part.offsets is None or part.offsets.shape == (out, groups)
        assert part.column_scales is None or part.column_scales.shape == (columns,)
        if part.columns is None:
            assert columns == length
        else:
            used = part.columns[part.columns >= 0]
            assert part.columns.dtype == torch.int64
            assert len(part.columns) == columns
            assert len(used.unique()) == len(used) <= length
            assert not len(used) or int(used.max()) < length
    if form.sparse is not None:
        starts, columns = form.sparse.row_starts, form.sparse.columns
        assert starts.dtype == columns.dtype == torch.int32
        assert form.sparse.codes.dtype == torch.uint8
        assert starts.shape == (out + 1,)
        assert int(starts[-1]) == len(columns) == len(form.sparse.codes)
        for row in range(out):
            assert bool((columns[starts[row] : starts[row + 1]].diff() > 0).all())


def test_every_registered_format_is_covered() -> None:
    shipped = {
        name for name in registry().table("format") if registry().source("format", name).distribution == "lowbit"
    }
    assert shipped - WITHOUT == set(RANDOM)


@each_format
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 150),
    group_size=st.sampled_from([-1, 1, 7, 32, 64, 200]),
    share=st.sampled_from(SHARES),
    seed=st.integers(0, 2**16),
    kind=st.integers(0, 15),
)
def test_planes_stand_for_the_same_matrix(
    name: str, rows: int, columns: int, group_size: int, share: float, seed: int, kind: int
) -> None:
    assert_planes_stand_for(RANDOM[name](Draw((rows, columns), group_size, share, seed, kind)))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", range(16))
def test_each_variant_of_the_residual_format_has_planes(share: float, kind: int) -> None:
    assert_planes_stand_for(residual_binary(Draw((4, 150), 64, share, kind, kind)))


@pytest.mark.parametrize("name", QUANTIZERS)
@each_shape
def test_real_quantized_weights_have_planes(quantize: Any, name: str, shape: tuple[int, int]) -> None:
    assert_offers_planes(quantize(name, gaussian(*shape)))


@pytest.mark.parametrize("name", QUANTIZERS)
@each_special
def test_degenerate_quantized_weights_have_planes(quantize: Any, name: str, kind: str) -> None:
    assert_offers_planes(quantize(name, special_weights()[kind]))


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_own_options_give_planes(quantize: Any, name: str) -> None:
    method = registry().method(name)
    assert_offers_planes(quantize(str(method.quantizer), gaussian(8, 172), **method.options))


def assert_offers_planes(weight: QuantizedWeight) -> None:
    """Every format but the dense one offers planes, and integer codes do up to three bits."""
    if weight.format in WITHOUT or getattr(weight, "bits", 0) > 3:
        assert weight.plane_form() is None
    else:
        assert_planes_stand_for(weight)


@pytest.mark.parametrize("name", ["uniform", "uniform-ordered", "uniform-affine"])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_more_than_three_bits_have_no_planes(name: str, bits: int) -> None:
    made = RANDOM[name](Draw((3, 40), 16, 0.0, 1, 1))
    assert type(made)(**{**vars(made), "bits": bits}).plane_form() is None


def test_dual_binary_scales_stay_as_they_are_stored() -> None:
    weight = dual_binary(Draw((3, 40), 16, 0.0, 0, 0))
    assert isinstance(weight, DualBinaryWeight)
    form = weight.plane_form()
    assert torch.equal(form.parts[0].scales, torch.stack([weight.alpha1, weight.alpha2]))
    assert form.parts[0].offsets is None


def test_groups_of_unequal_size_are_filled_up_so_that_they_stay_aligned() -> None:
    index = torch.tensor([2, 0, 2, 2, 0], dtype=torch.int32)
    scales = torch.tensor([[1.0, 5.0, 3.0]])
    zero_points = torch.tensor([[1, 0, 2]], dtype=torch.uint8)
    codes = torch.tensor([[0, 1, 2, 3, 3]], dtype=torch.uint8)
    form = assert_planes_stand_for(OrderedUniformWeight(codes, scales, zero_points, 2, 2, index))
    (part,) = form.parts
    assert part.group_size == 3
    assert part.columns is not None
    assert part.columns.tolist() == [1, 4, -1, -1, -1, -1, 0, 2, 3]


def test_a_block_without_salient_columns_stays_aligned_with_its_scales() -> None:
    weight = residual_binary(Draw((3, 12), 4, 0.0, 2, 3))
    flags = torch.zeros(12, dtype=torch.bool)
    flags[[1, 9, 10]] = True
    groups = torch.tensor([[True, False, True]] * 3)
    changed = {"salient_columns": flags, "salient_groups": groups, "salient_column_scales": torch.zeros(0, 3)}
    weight = ResidualBinaryWeight(**{**vars(weight), **changed})
    form = assert_planes_stand_for(weight)
    gathered = [part.columns.tolist() for part in form.parts if part.columns is not None]
    assert gathered == [[1, -1, -1, -1, 9, 10]] * 2
