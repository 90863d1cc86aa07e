"""BiLLM against loops over candidates, rows and groups in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_billm import BiLLM, ResidualBinaryWeight
from lowbit_billm.search import best_break_point, best_column_count, break_point_candidates
from quantization.layers import correlated_inputs, gaussian, statistics_of
from torch import Tensor

from lowbit import LayerStatistics
from lowbit.packing import GenericPacker
from lowbit.recipe import build_quantizer
from lowbit.registry import registry

OUT, IN, BLOCK = 10, 75, 32


def billm(weight: Tensor, statistics: LayerStatistics | None, **options: Any) -> ResidualBinaryWeight:
    made = build_quantizer(registry(), {"name": "billm", "block_size": BLOCK, **options})
    quantized = made.quantize(weight, statistics, torch.Generator())
    assert isinstance(quantized, ResidualBinaryWeight)
    quantized.spec()
    return quantized


def binarized(values: np.ndarray, mask: np.ndarray, order: int, shift: bool) -> np.ndarray:
    """Binarize the masked elements of each row, `order` times over what is left; zeros elsewhere."""
    result = np.zeros_like(values)
    for row in range(len(values)):
        members = np.flatnonzero(mask[row])
        if not len(members):
            continue
        rest = values[row, members].copy()
        for _ in range(order):
            mean = rest.mean() if shift else 0.0
            scale = np.abs(rest - mean).mean()
            level = mean + scale * np.where(rest >= mean, 1.0, -1.0)
            result[row, members] += level
            rest -= level
    return result


def squared_error(values: np.ndarray, mask: np.ndarray, orders: tuple[int, int], shift: bool) -> float:
    both = binarized(values, mask, orders[0], shift) + binarized(values, ~mask, orders[1], shift)
    return float(((values - both) ** 2).sum())


def wide(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.broadcast_to(mask, like.shape)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.sampled_from([1, 2]), shift=st.booleans(), heavy=st.booleans())
def test_the_column_count_is_that_of_least_error(seed: int, order: Any, shift: bool, heavy: bool) -> None:
    target = gaussian(6, 20, seed=seed)
    target = target.square() if heavy else target
    target = target[:, target.abs().sum(0).argsort(descending=True)]
    values = target.double().numpy()
    errors = [squared_error(values, wide(np.arange(20) < n, values), (order, order), shift) for n in range(1, 15)]
    found = best_column_count(target, torch.arange(1, 15), order, shift)
    assert errors[found - 1] == pytest.approx(min(errors), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.booleans(), heavy=st.booleans(), kind=st.integers(0, 1))
def test_the_break_point_is_that_of_least_error(seed: int, shift: bool, heavy: bool, kind: int) -> None:
    target = gaussian(6, 20, seed=seed)
    target = target.square() if heavy else target
    values = target.double().numpy()
    candidates = break_point_candidates(target, 12, ("max-fraction", "percentile")[kind])
    errors = [squared_error(values, np.abs(values) < p, (1, 1), shift) for p in candidates.tolist()]
    found = best_break_point(target, candidates, shift)
    assert errors[candidates.tolist().index(found)] == pytest.approx(min(errors), rel=1e-6)


def test_the_quantiles_count_the_zeros_of_salient_columns() -> None:
    values = gaussian(5, 9)
    everything = np.concatenate([values.abs().flatten().double().numpy(), np.zeros(15)])
    expected = np.quantile(everything, np.linspace(0.10, 0.90, 81))
    assert np.allclose(break_point_candidates(values, 15, "percentile").double().numpy(), expected, rtol=1e-6)


def test_the_paper_tries_nine_fractions_of_the_largest_magnitude() -> None:
    candidates = break_point_candidates(torch.tensor([[0.5, -2.0]]), 3, "max-fraction")
    assert candidates.tolist() == pytest.approx([0.2 * n for n in range(1, 10)])


def best_zones(target: np.ndarray, score: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Salient columns and sparse weights of a block, by trying every candidate."""
    columns = target.shape[1]
    ranking = np.argsort(-score, kind="stable")
    counts = range(min(config.col_range[0], columns), min(config.col_range[1], columns) + 1)
    order, shift = config.search_order, config.mean_shift
    flags = [wide(np.isin(np.arange(columns), ranking[:n]), target) for n in counts]
    salient = min(flags, key=lambda mask: squared_error(target, mask, (order, order), shift))[0]
    hidden = np.where(salient, 0, np.abs(target))
    if config.breakpoint == "percentile":
        candidates = np.quantile(hidden, np.linspace(0.10, 0.90, 81))
    else:
        candidates = np.arange(1, 10) / 10 * hidden.max()
    rest = target[:, ~salient]
    limit = min(candidates, key=lambda p: squared_error(rest, np.abs(rest) < p, (1, 1), shift))
    return salient, (hidden >= limit) & ~salient


def reference(weight: Tensor, hessian: Tensor, config: Any) -> np.ndarray:
    """The whole method in float64, block by block."""
    work = weight.double().numpy().copy()
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    inverse = torch.linalg.inv(damped)
    upper = torch.linalg.cholesky(inverse, upper=True).numpy()
    printed = config.saliency_denominator == "printed"
    denominator = inverse.diagonal().numpy() if printed else upper.diagonal()
    for start in range(0, work.shape[1], config.block_size):
        columns = slice(start, min(start + config.block_size, work.shape[1]))
        block = work[:, columns].copy()
        saliency = block**2 / denominator[columns] ** 2 if config.saliency == "hessian" else block
        target = saliency if config.search_on == "saliency" else block
        salient, sparse = best_zones(target, np.abs(saliency).sum(0), config)
        result = binarized(block, wide(salient, block), 2, config.mean_shift)
        result += binarized(block, sparse, 1, config.mean_shift)
        result += binarized(block, ~sparse & ~salient, 1, config.mean_shift)
        error = block - result
        part = upper[columns, columns]
        scaled = error / part.diagonal() if config.block_comp == "diagonal" else error @ np.linalg.inv(part)
        work[:, columns] = result
        work[:, columns.stop :] -= scaled @ upper[columns, columns.stop :]
    return work


CASES: list[dict[str, Any]] = [
    {"fidelity": "paper"},
    {"fidelity": "code"},
    {"fidelity": "code", "saliency": "magnitude"},
    {"fidelity": "paper", "mean_shift": True, "block_comp": "triangular"},
    {"fidelity": "code", "search_on": "weights", "breakpoint": "max-fraction", "block_size": 128},
    {"fidelity": "paper", "search_order": 2, "saliency_denominator": "trailing", "col_range": (1, 49)},
]


@pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_equals_the_whole_method_in_float64(options: dict[str, Any]) -> None:
    statistics = statistics_of(correlated_inputs(150, IN))
    weight = gaussian(OUT, IN, seed=1)
    assert statistics.hessian is not None
    settings = {"block_size": BLOCK, "scale_dtype": "float32", "precision": "float64", **options}
    expected = reference(weight, statistics.hessian, BiLLM.Config(**settings).resolved())
    found = billm(weight, statistics, **settings).dequantize().double().numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_presets_set_every_switch() -> None:
    paper, code = BiLLM.Config().resolved(), BiLLM.Config(fidelity="code").resolved()
    assert (paper.search_on, paper.col_range, paper.breakpoint) == ("weights", (3, 30), "max-fraction")
    assert (paper.mean_shift, paper.search_order, paper.saliency_denominator) == (False, 1, "printed")
    assert (code.search_on, code.col_range, code.breakpoint) == ("saliency", (1, 49), "percentile")
    assert (code.mean_shift, code.search_order, code.saliency_denominator) == (True, 2, "trailing")
    assert (paper.block_comp, code.block_comp) == ("diagonal", "diagonal")
    assert (paper.scale_dtype, code.scale_dtype) == ("float16", "float32")
    assert None not in paper.model_dump().values()


def test_a_range_of_columns_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="fewest <= most"):
        BiLLM.Config(col_range=(9, 3))


@pytest.mark.parametrize("fidelity", ["paper", "code"])
def test_float16_scales_are_what_the_weight_is_made_of(fidelity: str) -> None:
    quantized = billm(
        gaussian(OUT, IN), statistics_of(correlated_inputs(80, IN)), fidelity=fidelity, scale_dtype="float16"
    )
    assert quantized.scales.dtype == torch.float16
    assert len(quantized.means) == (3 if fidelity == "code" else 0)


@pytest.mark.parametrize("fidelity", ["paper", "code"])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (3, 2), (2, 37), (3, 33), (5, 160)])
def test_odd_shapes_and_short_blocks_are_packed_bit_exactly(shape: tuple[int, int], fidelity: str) -> None:
    quantized = billm(gaussian(*shape), statistics_of(correlated_inputs(64, shape[1])), fidelity=fidelity)
    packer = GenericPacker()
    unpacked = packer.unpack(packer.pack(quantized), ResidualBinaryWeight)
    assert torch.equal(unpacked.dequantize(), quantized.dequantize())
    assert bool(torch.isfinite(quantized.dequantize()).all())


@pytest.mark.parametrize("fidelity", ["paper", "code"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_weights_are_binarized_like_ordinary_ones(scale: float, fidelity: str) -> None:
    statistics = statistics_of(correlated_inputs(80, IN))
    weight = gaussian(OUT, IN)
    ordinary = billm(weight, statistics, fidelity=fidelity, scale_dtype="float32").dequantize()
    found = billm(weight * scale, statistics, fidelity=fidelity).dequantize() / scale
    assert (found - ordinary).abs().max() < 1e-3 * ordinary.abs().max()


@pytest.mark.parametrize("fidelity", ["paper", "code"])
def test_degenerate_layers_give_finite_weights(fidelity: str) -> None:
    weight = gaussian(OUT, IN)
    weight[1] = 0
    weight[2] = 0.7
    weight[3, :BLOCK] = 0
    inputs = correlated_inputs(2, IN)
    inputs[:, 5] = 0
    for statistics in (statistics_of(inputs), statistics_of(torch.zeros(4, IN)), None):
        found = billm(weight, statistics, fidelity=fidelity).dequantize()
        assert bool(torch.isfinite(found).all())
        assert found[1].count_nonzero() == 0


def test_more_salient_columns_than_a_block_has_are_not_asked_for() -> None:
    quantized = billm(gaussian(4, 2), None, fidelity="code")
    assert int(quantized.salient_columns.sum()) in (1, 2)


@pytest.mark.parametrize(("out", "columns", "block"), [(64, 256, 128), (32, 384, 128), (16, 200, 64)])
@pytest.mark.parametrize("fidelity", ["paper", "code"])
def test_bytes_follow_the_published_formula_less_the_shared_plane(
    out: int, columns: int, block: int, fidelity: str
) -> None:
    quantized = billm(
        gaussian(out, columns),
        statistics_of(correlated_inputs(64, columns)),
        block_size=block,
        fidelity=fidelity,
        scale_dtype="float16",
    )
    salient, blocks = int(quantized.salient_columns.sum()), -(-columns // block)
    formula = 2 * out * columns + out * salient + columns + 112 * out * blocks
    shared_plane = out * salient  # group bits and residual signs lie in one plane
    without_means = 0 if fidelity == "code" else 3 * 16 * out * blocks  # the paper's binarizer has no means
    padding = -columns % 8 * (2 * out + 1)  # every row of a plane starts on a byte
    packed = 8 * sum(tensor.nbytes for tensor in GenericPacker().pack(quantized).tensors.values())
    assert packed == formula - shared_plane - without_means + padding
    assert quantized.nominal_bits == pytest.approx(1 + salient / columns)


@pytest.mark.parametrize("options", [{"mean_shift": True}, {"fidelity": "code", "scale_dtype": "float16"}])
def test_a_mean_near_zero_does_not_turn_all_scales_into_float32(options: dict[str, Any]) -> None:
    weight = gaussian(256, 256, seed=2)
    assert (weight[:, :32].mean(1).abs() < 0.01).any()
    quantized = billm(weight, None, **options)
    assert quantized.scales.dtype == quantized.means.dtype == torch.float16
