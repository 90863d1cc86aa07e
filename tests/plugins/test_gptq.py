"""GPTQ against a plain column loop in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowbit_baselines import GPTQ, OrderedUniformWeight, UniformWeight
from quantization.layers import correlated_inputs, gaussian, output_error, statistics_of
from torch import Tensor

from lowbit import LayerStatistics, QuantizationWarning
from lowbit.packing import GenericPacker
from lowbit.recipe import build_quantizer
from lowbit.registry import registry

OUT, IN = 8, 48


def gptq(weight: Tensor, statistics: LayerStatistics | None, **options: Any) -> UniformWeight:
    made = build_quantizer(registry(), {"name": "gptq", "scale_dtype": "float32", "precision": "float64", **options})
    quantized = made.quantize(weight, statistics, torch.Generator())
    assert isinstance(quantized, UniformWeight)
    quantized.spec()
    return quantized


def grid(group: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    top = 2**bits - 1
    lowest, highest = group.amin(1).clamp_max(0), group.amax(1).clamp_min(0)
    if symmetric:
        return 2 * torch.maximum(-lowest, highest) / top, torch.full_like(lowest, (top + 1) // 2)
    scale = (highest - lowest) / top
    return scale, (-lowest / scale).round().clamp(0, top)


def reference(
    weight: Tensor,
    hessian: Tensor,
    bits: int = 2,
    group: int = IN,
    block: int = 128,
    symmetric: bool = False,
    stale: bool = False,
    order: Tensor | None = None,
    static: bool = False,
) -> Tensor:
    """The published algorithm, one column after the other, float64, each error applied to all later columns at once."""
    order = torch.arange(weight.shape[1]) if order is None else order
    original = weight.double()
    work = original[:, order].clone()
    hessian = hessian.double()[order][:, order]
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    result = torch.empty_like(work)
    block_start = work
    for j in range(work.shape[1]):
        if j % block == 0:
            block_start = work.clone()
        source = order[j] // group * group if static else j // group * group
        if static:
            scale, zero = grid(original[:, source : source + group], bits, symmetric)
        elif j == source:
            scale, zero = grid((block_start if stale else work)[:, j : j + group], bits, symmetric)
        codes = ((work[:, j] / scale).round() + zero).clamp(0, 2**bits - 1)
        result[:, j] = scale * (codes - zero)
        error = (work[:, j] - result[:, j]) / upper[j, j]
        work[:, j + 1 :] -= torch.outer(error, upper[j, j + 1 :])
    return result[:, torch.argsort(order)]


@pytest.fixture(scope="module")
def statistics() -> LayerStatistics:
    return statistics_of(correlated_inputs(120, IN))


def assert_same_codes(found: UniformWeight, expected: Tensor) -> None:
    assert torch.allclose(found.dequantize().double(), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_equals_the_column_loop_at_every_width(statistics: LayerStatistics, bits: int, symmetric: bool) -> None:
    weight = gaussian(OUT, IN, seed=bits)
    assert statistics.hessian is not None
    found = gptq(weight, statistics, bits=bits, group_size=-1, symmetric=symmetric)
    assert_same_codes(found, reference(weight, statistics.hessian, bits, symmetric=symmetric))


@pytest.mark.parametrize("block", [8, 20, 128])
@pytest.mark.parametrize("group", [8, 12, 32])
@pytest.mark.parametrize("ranges", ["fresh", "stale"])
def test_ranges_of_groups_are_fresh_in_the_paper_and_stale_in_the_code(
    statistics: LayerStatistics, ranges: str, group: int, block: int
) -> None:
    weight = gaussian(OUT, IN, seed=3)
    assert statistics.hessian is not None
    found = gptq(weight, statistics, bits=3, group_size=group, block_size=block, ranges=ranges)
    expected = reference(weight, statistics.hessian, 3, group, block, stale=ranges == "stale")
    assert_same_codes(found, expected)


@pytest.mark.parametrize("static", [False, True])
def test_activation_order_keeps_or_scatters_the_groups(statistics: LayerStatistics, static: bool) -> None:
    weight = gaussian(OUT, IN, seed=4)
    assert statistics.hessian is not None
    order = torch.argsort(statistics.hessian.diagonal(), descending=True, stable=True)
    found = gptq(weight, statistics, bits=3, group_size=16, act_order=True, static_groups=static)
    assert_same_codes(found, reference(weight, statistics.hessian, 3, 16, order=order, static=static))
    assert isinstance(found, OrderedUniformWeight) is not static


def test_activation_order_of_whole_rows_needs_no_group_index(statistics: LayerStatistics) -> None:
    found = gptq(gaussian(OUT, IN), statistics, act_order=True, group_size=-1)
    assert type(found) is UniformWeight


def test_the_preset_code_means_stale_ranges_and_float32_scales() -> None:
    paper, code = GPTQ.Config().resolved(), GPTQ.Config(fidelity="code").resolved()
    assert (paper.ranges, paper.scale_dtype) == ("fresh", "float16")
    assert (code.ranges, code.scale_dtype) == ("stale", "float32")


def test_outputs_are_nearer_than_those_of_round_to_nearest(statistics: LayerStatistics) -> None:
    weight = gaussian(64, IN, seed=5)
    assert statistics.hessian is not None
    nearest = build_quantizer(registry(), {"name": "rtn", "bits": 3, "group_size": 16})
    plain = nearest.quantize(weight, None, torch.Generator()).dequantize()
    compensated = gptq(weight, statistics, bits=3, group_size=16).dequantize()
    assert output_error(weight, compensated, statistics.hessian) < 0.7 * output_error(weight, plain, statistics.hessian)


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"act_order": True, "static_groups": True}])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (3, 37), (2, 300)])
def test_odd_shapes_are_packed_bit_exactly(shape: tuple[int, int], options: dict[str, Any]) -> None:
    weight = gaussian(*shape)
    quantized = gptq(weight, statistics_of(correlated_inputs(64, shape[1])), group_size=16, **options)
    packer = GenericPacker()
    unpacked = packer.unpack(packer.pack(quantized), type(quantized))
    assert torch.equal(unpacked.dequantize(), quantized.dequantize())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_and_huge_weights_keep_their_relative_error(
    statistics: LayerStatistics, scale: float, dtype: torch.dtype
) -> None:
    weight = (gaussian(OUT, IN, seed=6) * scale).to(dtype).float()
    found = gptq(weight, statistics, bits=4, scale_dtype="float16").dequantize()
    plain = gptq(weight / scale, statistics, bits=4).dequantize()
    assert torch.allclose(found / scale, plain, atol=1e-2)


def test_zero_and_constant_rows_come_back_as_they_were(statistics: LayerStatistics) -> None:
    weight = gaussian(OUT, IN)
    weight[2] = 0
    weight[3] = 0.5
    found = gptq(weight, statistics, bits=4, group_size=16).dequantize()
    assert found[2].count_nonzero() == 0
    assert torch.allclose(found[3], torch.full((IN,), 0.5), atol=1e-5)


def test_a_rank_deficient_hessian_and_dead_columns_give_finite_weights() -> None:
    inputs = correlated_inputs(3, IN)
    inputs[:, 7] = 0
    with pytest.warns(QuantizationWarning, match="not positive definite"):
        found = gptq(gaussian(OUT, IN), statistics_of(inputs), damping=0).dequantize()
    assert bool(torch.isfinite(found).all())
    assert found[:, 7].count_nonzero() == 0


def test_without_statistics_it_is_round_to_nearest() -> None:
    weight = gaussian(OUT, IN)
    nearest = build_quantizer(registry(), {"name": "rtn", "bits": 2, "group_size": 16, "scale_dtype": "float32"})
    expected = nearest.quantize(weight, None, torch.Generator()).dequantize()
    assert torch.equal(gptq(weight, None, group_size=16).dequantize(), expected)


@pytest.mark.parametrize(("out", "columns", "bits", "group"), [(64, 256, 2, 64), (8, 130, 3, 128), (16, 64, 4, 16)])
def test_bytes_follow_the_formula_of_uniform_integers(out: int, columns: int, bits: int, group: int) -> None:
    quantized = gptq(
        gaussian(out, columns),
        statistics_of(correlated_inputs(64, columns)),
        bits=bits,
        group_size=group,
        scale_dtype="float16",
    )
    groups = -(-columns // group)
    formula = out * (bits * columns + (16 + bits) * groups)  # N + (16 + N) / g, for groups that may not be full
    packed = 8 * sum(tensor.nbytes for tensor in GenericPacker().pack(quantized).tensors.values())
    padding = out * (-(bits * columns) % 8 + -(bits * groups) % 8)  # every row starts on a byte
    assert packed == formula + padding
