"""What this plugin promises beyond lowbit's contracts."""

from itertools import product
from math import log

import pytest
import torch
from lowbit import DistillationBatch
from torch import Tensor

from lowbit_ternary import Base3Packer, JensenShannon, TernaryQuantizer, TernaryWeight
from lowbit_ternary.packer import pack_digits, unpack_digits


def gaussian(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def quantized(weight: Tensor, **options: object) -> TernaryWeight:
    quantizer = TernaryQuantizer(TernaryQuantizer.Config(scale_dtype="float32", **options))
    return quantizer.quantize(weight, None, torch.Generator())


def error(weight: Tensor, found: Tensor) -> float:
    return float((weight - found).square().sum())


def test_no_other_scale_and_digits_have_less_error() -> None:
    weight = gaussian(1, 6)
    least = float("inf")
    for levels in product((-1.0, 0.0, 1.0), repeat=6):
        digits = torch.tensor([levels])
        scale = (weight * digits).sum() / digits.square().sum().clamp_min(1)
        least = min(least, error(weight, scale * digits))
    assert error(weight, quantized(weight).dequantize()) == pytest.approx(least, rel=1e-5)


def test_the_scale_of_ternary_weight_networks_is_the_mean_above_their_threshold() -> None:
    weight = gaussian(3, 50)
    scales = quantized(weight, scale="twn", group_size=-1).scales
    for row, scale in zip(weight.abs(), scales[:, 0], strict=True):
        assert float(scale) == pytest.approx(float(row[row > 0.7 * row.mean()].mean()))


def test_the_least_error_is_no_larger_than_that_of_ternary_weight_networks() -> None:
    weight = gaussian(16, 256)
    exact, estimated = (quantized(weight, scale=name).dequantize() for name in ("least-error", "twn"))
    assert error(weight, exact) < error(weight, estimated)


def test_every_group_of_five_digits_has_its_own_byte() -> None:
    digits = torch.tensor(list(product(range(3), repeat=5)), dtype=torch.uint8)  # [243, 5]
    packed = pack_digits(digits)
    assert sorted(packed.flatten().tolist()) == list(range(243))
    assert torch.equal(unpack_digits(packed, 5), digits)


@pytest.mark.parametrize("length", range(1, 12))
def test_rows_of_any_length_come_back(length: int) -> None:
    digits = torch.randint(0, 3, (4, length), generator=torch.Generator().manual_seed(length), dtype=torch.uint8)
    assert torch.equal(unpack_digits(pack_digits(digits), length), digits)


def test_a_digit_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="0, 1 or 2, not 3"):
        pack_digits(torch.tensor([[3]], dtype=torch.uint8))


def test_a_weight_takes_one_and_six_tenths_bits_and_its_share_of_a_scale() -> None:
    weight = quantized(gaussian(32, 320), group_size=64)
    packed = Base3Packer().pack(weight)
    stored = 8 * sum(tensor.nbytes for tensor in packed.tensors.values()) / (32 * 320)
    assert stored == pytest.approx(1.6 + 32 / 64)


def test_the_planes_stand_for_the_same_matrix() -> None:
    weight = quantized(gaussian(8, 70))
    assert torch.equal(weight.plane_form().dense(), weight.dequantize())


def test_latent_weights_beyond_the_outer_levels_get_no_gradient() -> None:
    weight = torch.tensor([[3.0, -0.1, 0.2, -2.5]])
    quantizer = TernaryQuantizer(TernaryQuantizer.Config(group_size=-1))
    start = TernaryWeight(torch.tensor([[2, 1, 1, 0]], dtype=torch.uint8), torch.tensor([[2.0]]), -1)
    training = quantizer.parametrize(weight, start)
    latent = weight.clone().requires_grad_()
    training(latent).sum().backward()
    assert latent.grad is not None
    assert latent.grad.tolist() == [[0.0, pytest.approx(1.0), pytest.approx(1.0), 0.0]]


def test_the_divergence_is_zero_for_equal_predictions_and_never_above_ln_2() -> None:
    logits = gaussian(5, 11)
    labels = torch.zeros(5, dtype=torch.int64)
    same = JensenShannon()(DistillationBatch(logits, logits, labels)).value
    far = JensenShannon()(DistillationBatch(100 * logits, -100 * logits, labels)).value
    assert same.abs().max() < 1e-6
    assert far.tolist() == pytest.approx([log(2)] * 5, rel=1e-4)
