"""PB-LLM of whole matrices: levels, compensation against a naive loop, presets, and weights that break quantizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowbit_pbllm import IndexedPartialBinaryWeight, PartialBinarization, PartialBinaryWeight
from lowbit_pbllm.format import PartialBinary
from torch import Tensor

from lowbit import LayerStatistics
from lowbit.packing import GenericPacker

READINGS = ["paper", "code"]
each_reading = pytest.mark.parametrize("fidelity", READINGS)
each_saliency = pytest.mark.parametrize("saliency", ["hessian", "magnitude"])


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics_of(tokens: Tensor) -> LayerStatistics:
    return LayerStatistics(len(tokens), tokens.square().mean(0), 2 * tokens.T @ tokens / len(tokens))


def correlated(columns: int, tokens: int = 400, seed: int = 3) -> LayerStatistics:
    mixing = torch.eye(columns) + 0.3 * gaussian(columns, columns, seed=seed)
    return statistics_of(gaussian(tokens, columns, seed=seed + 1) @ mixing)


def quantized(weight: Tensor, statistics: LayerStatistics | None, **options: Any) -> PartialBinary:
    quantizer = PartialBinarization(PartialBinarization.Config(**options))
    result = quantizer.quantize(weight, statistics, torch.Generator())
    result.spec()
    assert bool(torch.isfinite(result.dequantize()).all())
    return result


def naive(
    weight: Tensor, hessian: Tensor, fidelity: str, saliency: str, group_size: int = -1, **options: Any
) -> Tensor:
    """The method in float64, element by element and column by column, with the inverse Hessian itself."""
    low_frac, bits = options.get("low_frac", 0.9), options.get("high_bit", 8)
    w, h = weight.double(), hessian.double()
    steps = (w.amax(1).clamp_min(0) - w.amin(1).clamp_max(0)) / (2**bits - 1)
    zero_points = (-w.amin(1).clamp_max(0) / steps).round()
    h = h + options.get("damping", 0.01) * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    inverse = torch.linalg.inv(h)
    upper = torch.linalg.cholesky(inverse, upper=True)
    divisor = inverse.diagonal() if fidelity == "paper" else upper.diagonal()
    ranks = w.square() if saliency == "magnitude" else w.square() / divisor.square()
    size = w.shape[1] if group_size == -1 else group_size
    salient = torch.zeros_like(w, dtype=torch.bool)
    means, scales = torch.zeros_like(w), torch.zeros_like(w)
    for start in range(0, w.shape[1], size):
        part = slice(start, start + size)
        ordered = ranks[:, part].flatten().sort().values
        last = round(low_frac * len(ordered)) - 1 if fidelity == "paper" else int(low_frac * len(ordered))
        salient[:, part] = ranks[:, part] > ordered[last]
        for row in range(len(w)):
            kept = w[row, part][~salient[row, part]]
            if fidelity == "code":
                kept = torch.where(salient[row, part], 0, w[row, part])
            if len(kept):
                means[row, part] = kept.mean()
                scales[row, part] = (kept - kept.mean()).abs().mean()
    dense = torch.zeros_like(w)
    for column in range(w.shape[1]):
        now = w[:, column]
        code = ((now / steps).round() + zero_points).clamp(0, 2**bits - 1)
        sign = torch.where(now >= means[:, column], 1.0, -1.0)
        low = means[:, column] + scales[:, column] * sign
        dense[:, column] = torch.where(salient[:, column], steps * (code - zero_points), low)
        error = (now - dense[:, column]) / upper[column, column]
        if options.get("compensate", True):
            w = w - torch.outer(error, upper[column])
    return dense


@each_reading
@each_saliency
@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("compensate", [True, False])
def test_it_equals_a_naive_loop_over_columns(fidelity: str, saliency: str, group_size: int, compensate: bool) -> None:
    weight, statistics = gaussian(12, 48), correlated(48)
    options = {"fidelity": fidelity, "saliency": saliency, "group_size": group_size, "compensate": compensate}
    assert statistics.hessian is not None
    dense = quantized(weight, statistics, **options, scale_dtype="float32", block_size=20).dequantize()
    assert torch.allclose(dense.double(), naive(weight, statistics.hessian, **options), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"low_frac": 0.5}, {"high_bit": 2}, {"high_bit": 5, "low_frac": 0.7}, {"damping": 1.0}]
)
def test_options_mean_what_they_mean_in_the_naive_loop(options: dict[str, Any]) -> None:
    weight, statistics = gaussian(10, 40, seed=2), correlated(40)
    assert statistics.hessian is not None
    dense = quantized(weight, statistics, **options, scale_dtype="float32").dequantize()
    expected = naive(weight, statistics.hessian, "paper", "hessian", **options)
    assert torch.allclose(dense.double(), expected, rtol=0, atol=1e-5)


@each_reading
@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
def test_the_block_size_changes_only_the_order_of_sums(fidelity: str, block_size: int) -> None:
    weight, statistics = gaussian(9, 70), correlated(70)
    other = quantized(weight, statistics, fidelity=fidelity, block_size=block_size)
    whole = quantized(weight, statistics, fidelity=fidelity)
    assert torch.allclose(other.dequantize(), whole.dequantize(), atol=1e-5)


@each_reading
def test_an_identity_hessian_compensates_nothing(fidelity: str) -> None:
    weight, identity = gaussian(9, 70), LayerStatistics(10, torch.ones(70) / 2, torch.eye(70))
    with_it = quantized(weight, identity, fidelity=fidelity)
    without = quantized(weight, identity, fidelity=fidelity, compensate=False)
    assert torch.equal(with_it.dequantize(), without.dequantize())


def test_compensation_lowers_the_error_of_the_outputs() -> None:
    weight, statistics = gaussian(32, 96), correlated(96)
    assert statistics.hessian is not None
    errors = []
    for compensate in (True, False):
        difference = weight - quantized(weight, statistics, compensate=compensate).dequantize()
        errors.append(float((difference @ statistics.hessian * difference).sum()))
    assert errors[0] < 0.85 * errors[1]


def test_the_salient_share_is_exact_as_published_and_one_more_as_in_the_code() -> None:
    weight, statistics = gaussian(30, 64), correlated(64)
    assert quantized(weight, statistics, low_frac=0.9).codes.numel() == 192
    assert quantized(weight, statistics, low_frac=0.9, fidelity="code").codes.numel() == 191


def test_the_presets_set_every_switch_and_a_switch_that_is_given_stays() -> None:
    def resolved(**options: Any) -> tuple[object, ...]:
        made = PartialBinarization.Config(**options).resolved()
        return made.statistics, made.saliency_denominator, made.selection, made.scale_dtype

    assert resolved() == ("masked", "printed", "exact", "float16")
    assert resolved(fidelity="code") == ("biased", "trailing", "threshold", "float32")
    assert resolved(fidelity="code", selection="exact")[2] == "exact"


def test_scales_are_rounded_before_codes_are_chosen() -> None:
    weight = gaussian(20, 200)
    result = quantized(weight, None, low_frac=0.0, scale_dtype="bfloat16")
    assert result.salient_scales.dtype == torch.bfloat16
    steps = result.salient_scales.double().unsqueeze(1)
    codes = (weight.double() / steps).round() + result.salient_zero_points.double().unsqueeze(1)
    expected = steps * (codes.clamp(0, 255) - result.salient_zero_points.double().unsqueeze(1))
    assert torch.allclose(result.dequantize().double(), expected, atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_small_means_do_not_keep_scales_from_float16(share: float) -> None:
    weight = gaussian(64, 512) * 0.02
    weight -= weight.mean(1, keepdim=True)
    assert quantized(weight, None, low_frac=share).scales.dtype == torch.float16


def test_a_weight_that_equals_the_mean_counts_as_positive() -> None:
    result = quantized(torch.tensor([[1.0, 2.0, 3.0]]), None, low_frac=1.0, scale_dtype="float32")
    assert result.signs.tolist() == [[False, True, True]]
    assert result.dequantize()[0, 1] == 2.0 + 2 / 3


def test_the_smaller_mask_is_taken() -> None:
    weight = gaussian(16, 128)
    assert isinstance(quantized(weight, None, low_frac=0.9), IndexedPartialBinaryWeight)
    assert isinstance(quantized(weight, None, low_frac=0.5), PartialBinaryWeight)


@each_reading
@pytest.mark.parametrize("low_frac", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (6, 1), (1, 7), (3, 37), (5, 130)])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_any_shape_and_share_is_quantized_and_packed(
    fidelity: str, low_frac: float, shape: tuple[int, int], group_size: int
) -> None:
    options = {"fidelity": fidelity, "low_frac": low_frac, "group_size": group_size}
    result = quantized(gaussian(*shape), correlated(shape[1]), **options)
    again = GenericPacker().unpack(GenericPacker().pack(result), type(result))
    assert torch.equal(again.dequantize(), result.dequantize())


def test_no_binarized_weight_is_rounding_to_eight_bits() -> None:
    weight = gaussian(8, 50)
    result = quantized(weight, None, low_frac=0.0, scale_dtype="float32")
    assert result.nominal_bits == 8
    steps = (weight.amax(1) - weight.amin(1)) / 255
    assert bool(((weight - result.dequantize()).abs() <= 0.51 * steps.unsqueeze(1)).all())


def test_no_salient_weight_is_binarization_of_rows() -> None:
    weight = gaussian(8, 50)
    result = quantized(weight, None, low_frac=1.0, scale_dtype="float32")
    assert (result.nominal_bits, result.codes.numel()) == (1, 0)
    means = weight.mean(1, keepdim=True)
    scales = (weight - means).abs().mean(1, keepdim=True)
    assert torch.allclose(result.dequantize(), means + scales * (weight - means).sign(), atol=1e-6)


@each_reading
@pytest.mark.parametrize("exponent", [99, -99])
def test_weights_of_1e30_and_1e_minus_30_lose_nothing(fidelity: str, exponent: int) -> None:
    """A power of two changes no digit: 2^99 is about 6e29."""
    weight, statistics = gaussian(6, 70), correlated(70)
    plain = quantized(weight, statistics, fidelity=fidelity, scale_dtype="float32").dequantize()
    scaled = quantized(weight * 2.0**exponent, statistics, fidelity=fidelity)
    assert scaled.scales.dtype == torch.float32
    assert torch.equal(scaled.dequantize(), plain * 2.0**exponent)


@each_reading
@pytest.mark.parametrize("magnitude", [1e30, 1e-30, 1e38, 1e-38, 1e-44])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("high_bit", [2, 8])
def test_extreme_weights_never_give_nan(fidelity: str, magnitude: float, dtype: torch.dtype, high_bit: int) -> None:
    weight = (gaussian(5, 40).clamp(-1, 1) * magnitude).to(dtype).float()
    result = quantized(weight, correlated(40), fidelity=fidelity, high_bit=high_bit)
    assert bool(torch.isfinite(result.dequantize()).all())


@each_reading
@pytest.mark.parametrize("statistics", [None, correlated(40)], ids=["no tokens", "tokens"])
def test_zero_rows_stay_zero_and_constant_rows_nearly_exact(fidelity: str, statistics: LayerStatistics | None) -> None:
    weight = gaussian(6, 40)
    weight[1], weight[2] = 0, -0.375
    result = quantized(weight, statistics, fidelity=fidelity, low_frac=1.0)
    assert torch.equal(result.dequantize()[1], torch.zeros(40))
    assert torch.equal(result.dequantize()[2], torch.full((40,), -0.375))
    assert not quantized(torch.zeros(3, 17), None, fidelity=fidelity).dequantize().any()


@each_reading
def test_a_rank_deficient_hessian_is_damped(fidelity: str) -> None:
    weight, few = gaussian(8, 60), statistics_of(gaussian(5, 60))
    assert bool(torch.isfinite(quantized(weight, few, fidelity=fidelity).dequantize()).all())
    with pytest.warns(match="not positive definite"):
        undamped = quantized(weight, few, fidelity=fidelity, damping=0.0)
    assert bool(torch.isfinite(undamped.dequantize()).all())


@each_reading
def test_columns_without_input_become_zeros_but_count_for_the_grid(fidelity: str) -> None:
    tokens = gaussian(200, 30)
    tokens[:, [4, 11]] = 0
    weight = gaussian(7, 30)
    weight[:, 4] = 50.0
    result = quantized(weight, statistics_of(tokens), fidelity=fidelity, scale_dtype="float32")
    assert torch.allclose(result.salient_scales, (50 - weight.amin(1)) / 255)
    without = weight.clone()
    without[:, [4, 11]] = 0
    assert torch.equal(
        result.scales, quantized(without, statistics_of(tokens), fidelity=fidelity, scale_dtype="float32").scales
    )


@each_reading
def test_inputs_that_were_all_zero_are_reported_and_compensate_nothing(fidelity: str) -> None:
    weight = gaussian(5, 20)
    with pytest.warns(match="every calibration input was zero"):
        result = quantized(weight, statistics_of(torch.zeros(9, 20)), fidelity=fidelity)
    assert torch.equal(result.dequantize(), quantized(weight, None, fidelity=fidelity).dequantize())


def test_an_expert_without_tokens_is_chosen_by_magnitude_and_not_compensated() -> None:
    weight = gaussian(9, 33)
    alone = quantized(weight, None)
    assert torch.equal(alone.dequantize(), quantized(weight, None, saliency="magnitude").dequantize())
    rounded = quantized(weight, correlated(33), saliency="magnitude", compensate=False)
    assert torch.equal(alone.dequantize(), rounded.dequantize())
