"""ARB-LLM as a whole: its zones, its format's bytes, and matrices that break quantizers."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from lowbit_billm import ARBLLM, ResidualBinaryWeight, lowbit_diagnostics
from lowbit_billm.alternating import refine_second
from lowbit_billm.groups import calibrated_split, salient_groups
from lowbit_billm.refinement import Refinement
from lowbit_billm.search import break_point_candidates
from lowbit_billm.zones import Zones
from plugins.conftest import statistics_for
from torch import Tensor

from lowbit import DenseWeight, LayerStatistics, QuantizationWarning, StatisticsNeed
from lowbit.packing import GenericPacker

VARIANTS = ["arb", "arb-x", "arb-rc"]
SHAPES = [(64, 256), (24, 300), (8, 128), (5, 130), (16, 1000)]

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_bitmap = pytest.mark.parametrize("bitmap", [True, False], ids=["bitmap", "plain"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(weight: Tensor, statistics: LayerStatistics | None = None, **options: Any) -> ResidualBinaryWeight:
    config = ARBLLM.Config(**options)
    return ARBLLM(config).quantize(weight, statistics, torch.Generator().manual_seed(0))


def with_inputs(weight: Tensor, **options: Any) -> ResidualBinaryWeight:
    return quantized(weight, statistics_for(StatisticsNeed.HESSIAN, weight.shape[1]), **options)


@each_shape
@each_bitmap
def test_bytes_follow_the_formula_with_an_explained_remainder(shape: tuple[int, int], bitmap: bool) -> None:
    """2 + [n*c + 33*m + 64*n*ceil(m/k)] / (m*n) bits a weight for n rows, m columns, c of them salient, k a block.

    The formula counts a sign and a group bit for every weight, a second sign in salient columns (n*c), a flag and two
    scales of 16 bits for every column (33*m), and four scales for every row and block.
    - With group bits in salient columns the format holds just these planes, but two scales for each of the two groups
      of salient columns, which makes six scales a row and block and four a salient column.
    - Without them, the second sign takes the place of the group bit: n*c bits are saved.
    - Rows of bits fill whole bytes.
    """
    rows, columns = shape
    weight = with_inputs(gaussian(*shape), column_group_bitmap=bitmap)
    salient, blocks = int(weight.salient_columns.sum()), math.ceil(columns / 128)
    formula = 2 * columns * rows + rows * salient + 33 * columns + 64 * rows * blocks

    remainder = 32 * rows * blocks + 32 * salient if bitmap else -rows * salient
    padding = 2 * rows * (-columns % 8) + (-columns % 8) + (rows * (-salient % 8) if bitmap else 0)
    stored = sum(tensor.nbytes for tensor in GenericPacker().pack(weight).tensors.values())
    assert salient > 0
    assert 8 * stored == formula + remainder + padding
    assert weight.nominal_bits == pytest.approx(1 + salient / columns)


@each_variant
@each_bitmap
@pytest.mark.parametrize("fidelity", ["paper", "code"])
@pytest.mark.parametrize("shape", [(9, 1), (1, 200), (7, 131), (16, 256)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_packed_equals_dense(variant: str, bitmap: bool, fidelity: str, shape: tuple[int, int]) -> None:
    weight = with_inputs(gaussian(*shape), variant=variant, column_group_bitmap=bitmap, fidelity=fidelity)
    packer = GenericPacker()
    unpacked = packer.unpack(packer.pack(weight), ResidualBinaryWeight)
    assert torch.equal(unpacked.dequantize(), weight.dequantize())
    assert unpacked.tensors().keys() == weight.tensors().keys()
    assert all(torch.equal(unpacked.tensors()[name], tensor) for name, tensor in weight.tensors().items())


def test_parts_have_the_lengths_that_each_variant_needs() -> None:
    lengths = {}
    for variant in VARIANTS:
        for bitmap in (True, False):
            made = with_inputs(gaussian(6, 140), variant=variant, column_group_bitmap=bitmap)
            parts = (made.scales, made.means, made.column_scales, made.salient_column_scales)
            lengths[variant, bitmap] = [len(part) for part in parts]
            assert made.salient_groups.shape[1] == (int(made.salient_columns.sum()) if bitmap else 0)
    assert lengths["arb", False] == lengths["arb-x", False] == [4, 3, 0, 0]
    assert lengths["arb", True] == lengths["arb-x", True] == [6, 4, 0, 0]
    assert lengths["arb-rc", False] == [4, 0, 2, 0]
    assert lengths["arb-rc", True] == [6, 0, 2, 2]


@pytest.mark.parametrize("variant", ["arb", "arb-rc"])
@each_bitmap
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_no_other_signs_bring_a_weight_nearer(variant: str, bitmap: bool, scale_dtype: str) -> None:
    weight = gaussian(12, 200)
    made = quantized(weight, variant=variant, column_group_bitmap=bitmap, scale_dtype=scale_dtype)
    error = (weight - made.dequantize()).abs()
    salient = made.salient_columns.expand_as(made.signs)
    for first, second in ((True, False), (False, True), (True, True)):
        other = replace(made, signs=made.signs ^ first, shared_plane=made.shared_plane ^ (salient & second))
        assert bool((error <= (weight - other.dequantize()).abs() + 1e-6).all())


@each_variant
def test_a_power_of_two_passes_through_unchanged(variant: str) -> None:
    weight = gaussian(10, 150)
    made = with_inputs(weight, variant=variant, scale_dtype="float32").dequantize()
    for factor in (2.0**-60, 2.0**60):
        scaled = with_inputs(weight * factor, variant=variant, scale_dtype="float32").dequantize()
        assert torch.equal(scaled, made * factor)


def awkward() -> dict[str, Tensor]:
    mixed = gaussian(6, 140)
    mixed[0], mixed[1], mixed[2, :128] = 0, 0.3, 0
    return {
        "huge": gaussian(5, 140) * 1e30,
        "tiny": gaussian(5, 140) * 1e-30,
        "huge bfloat16": (gaussian(5, 140) * 1e30).bfloat16().float(),
        "tiny bfloat16": (gaussian(5, 140) * 1e-30).bfloat16().float(),
        "huge beside tiny": torch.cat([gaussian(3, 140) * 1e30, gaussian(3, 140) * 1e-30]),
        "rows of zeros and constants": mixed,
        "zeros": torch.zeros(3, 140),
        "one column": gaussian(5, 1),
        "one weight": gaussian(1, 1),
        "short last block": gaussian(4, 129),
    }


@each_variant
@pytest.mark.parametrize("fidelity", ["paper", "code"])
@pytest.mark.parametrize("kind", list(awkward()))
@pytest.mark.parametrize("inputs", ["none", "zero", "one token", "many"])
def test_awkward_matrices_stay_finite(variant: str, fidelity: str, kind: str, inputs: str) -> None:
    weight = awkward()[kind]
    columns = weight.shape[1]
    token = gaussian(columns, seed=5)
    hessians = {"zero": torch.zeros(columns, columns), "one token": 2 * torch.outer(token, token)}
    if inputs == "many":
        statistics = statistics_for(StatisticsNeed.HESSIAN, columns)
    elif inputs == "none":
        statistics = None
    else:
        hessian = hessians[inputs]
        statistics = LayerStatistics(1, hessian.diagonal() / 2, hessian)
    with pytest.warns(QuantizationWarning) if inputs == "zero" else nullcontext():
        made = quantized(weight, statistics, variant=variant, fidelity=fidelity)
    found = made.dequantize()
    assert bool(torch.isfinite(found).all())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in made.tensors().values())
    assert torch.equal(found[~weight.any(1)], torch.zeros_like(found[~weight.any(1)]))
    if inputs == "none":
        assert (found / 1e15 - weight / 1e15).norm() <= (weight / 1e15).norm() * (1 + 1e-6)


@each_variant
def test_small_means_and_noise_in_scales_do_not_take_more_bytes(variant: str) -> None:
    made = with_inputs(gaussian(512, 128) * 0.02, variant=variant)
    assert made.scales.dtype == made.means.dtype == made.column_scales.dtype == torch.float16


def test_a_scale_that_float16_cannot_hold_keeps_all_in_float32() -> None:
    weight = gaussian(4, 128) * torch.tensor([[1.0], [1e-9], [1.0], [1.0]])
    assert with_inputs(weight).scales.dtype == torch.float32


@each_variant
@each_bitmap
@pytest.mark.parametrize("col_range", [(0, 0), (128, 128)], ids=["no salient column", "only salient columns"])
def test_a_block_may_be_all_of_one_kind(variant: str, bitmap: bool, col_range: tuple[int, int]) -> None:
    weight = gaussian(16, 200)
    made = with_inputs(weight, variant=variant, column_group_bitmap=bitmap, col_range=col_range)
    assert made.salient_columns.float().mean().item() == (1.0 if col_range[0] else 0.0)
    assert bool(torch.isfinite(made.dequantize()).all())
    packer = GenericPacker()
    assert torch.equal(packer.unpack(packer.pack(made), ResidualBinaryWeight).dequantize(), made.dequantize())


def test_more_refinement_and_more_groups_lower_the_error_of_the_weights() -> None:
    weight = gaussian(64, 256) * (0.3 + gaussian(256, seed=1).abs())
    errors = {}
    for variant in ("arb", "arb-rc"):
        for iterations in (0, 15):
            made = quantized(weight, variant=variant, iterations=iterations, column_group_bitmap=False)
            errors[variant, iterations] = float((made.dequantize() - weight).norm())
    assert errors["arb", 15] < errors["arb", 0]
    assert errors["arb-rc", 15] < errors["arb-rc", 0]
    grouped = float((quantized(weight).dequantize() - weight).norm())
    assert grouped < errors["arb-rc", 15]
    assert errors["arb-rc", 15] < errors["arb", 15]  # columns differ in magnitude


def binarized_apart(values: Tensor, high: Tensor, order: int) -> Tensor:
    """Binarize both sides of a split in closed form, row by row, float64."""
    result = torch.zeros(values.shape, dtype=torch.float64)
    for i, row in enumerate(values.double()):
        for members in (high[i], ~high[i]):
            rest = row[members].clone()
            for _ in range(order if len(rest) else 0):
                rest = rest - rest.mean()
                rest = rest - rest.abs().mean() * rest.sign()
            result[i, members] = row[members] - rest
    return result


def searched_zones(seed: int) -> Zones:
    target = gaussian(10, 24, seed=seed).pow(2) * gaussian(24, seed=seed + 1).abs()
    salient = torch.zeros(24, dtype=torch.bool)
    salient[[1, 5, 6, 20, 22]] = True
    return Zones(salient, torch.zeros(10, 24, dtype=torch.bool), target)


@pytest.mark.parametrize("kind", ["percentile", "max-fraction"])
@pytest.mark.parametrize("seed", range(3))
def test_the_bitmap_of_salient_columns_is_the_best_of_all_candidates(kind: Any, seed: int) -> None:
    zones = searched_zones(seed)
    values = zones.target[:, zones.salient]
    errors = {}
    for candidate in break_point_candidates(values, 0, kind).tolist():
        errors[candidate] = float((values - binarized_apart(values, values >= candidate, 2)).square().sum())
    best = min(errors, key=errors.__getitem__)
    assert torch.equal(salient_groups(zones, kind, True), values >= best)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibrated_break_point_is_the_best_of_all_candidates(seed: int) -> None:
    zones = searched_zones(seed)
    inputs = gaussian(60, 24, seed=9) @ gaussian(24, 24, seed=10)
    moments = inputs.T @ inputs
    how = Refinement(15, 15, 0.0, 0.0, True, lambda v: v, lambda v: v)
    salient, rest = zones.target[:, zones.salient], zones.target[:, ~zones.salient]
    mean, first, second, signs = refine_second(salient, torch.ones_like(salient, dtype=torch.bool), how)
    approximated = torch.empty(zones.target.shape, dtype=torch.float64)
    signed = torch.where(signs, 1.0, -1.0)
    approximated[:, zones.salient] = (
        mean.unsqueeze(1) + first.unsqueeze(1) * signed[0] + second.unsqueeze(1) * signed[1]
    ).double()
    errors = {}
    for candidate in break_point_candidates(rest, salient.numel(), "percentile").tolist():
        approximated[:, ~zones.salient] = binarized_apart(rest, rest >= candidate, 1)
        residual = zones.target - approximated
        errors[candidate] = float(torch.trace(residual @ moments.double() @ residual.T))
    best = min(errors, key=errors.__getitem__)
    found = calibrated_split(zones, moments, "percentile", True, how)
    assert torch.equal(found[:, ~zones.salient], rest >= best)
    assert not bool(found[:, zones.salient].any())


def test_the_readings_differ_in_the_switches_that_they_declare() -> None:
    paper = ARBLLM.Config().resolved()
    code = ARBLLM.Config(fidelity="code").resolved()
    assert (paper.split_error, paper.epsilon, paper.keep_best, paper.scale_dtype) == ("weights", 0.0, True, "float16")
    assert (code.split_error, code.epsilon, code.keep_best, code.scale_dtype) == ("outputs", 1e-8, False, "float32")
    assert ARBLLM.Config(fidelity="code", epsilon=0.0).resolved().epsilon == 0.0
    assert paper.variant == code.variant == "arb-rc"


@pytest.mark.parametrize("name", ["billm", "arbllm"])
def test_diagnostics_say_where_the_bits_are(quantize: Any, name: str) -> None:
    made = quantize(name, gaussian(16, 256))
    numbers = lowbit_diagnostics(made)
    packed = GenericPacker().pack(made)
    total = sum(value for key, value in numbers.items() if key.endswith("_bits"))
    padding = 16 * (-made.salient_groups.shape[1] % 8)
    assert total * 16 * 256 == sum(8 * tensor.nbytes for tensor in packed.tensors.values()) - padding
    assert numbers["salient_column_share"] == made.salient_columns.float().mean().item()
    sparse = made.shared_plane[:, ~made.salient_columns].sum().item()
    assert numbers["sparse_share"] == sparse / (16 * 256)


def test_diagnostics_leave_other_formats_alone() -> None:
    assert lowbit_diagnostics(DenseWeight(torch.ones(1, 1), 16.0)) == {}
