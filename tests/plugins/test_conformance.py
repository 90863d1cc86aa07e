"""What every registered weight quantizer, format, packer and method must hold to, whoever wrote it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plugins.matrices import (
    PACKERS,
    assert_packs,
    assert_same,
    each_shape,
    each_special,
    gaussian,
    packers_for,
    special_weights,
)
from quantization.layers import statistics_for
from torch import Tensor

from lowbit import QuantizedWeight
from lowbit.recipe import resolve_recipe
from lowbit.registry import registry

QUANTIZERS = sorted(registry().table("weight quantizer"))
METHODS = [method.name for method in registry().methods()]
each_quantizer = pytest.mark.parametrize("name", QUANTIZERS)


def assert_sound(name: str, quantized: QuantizedWeight, weight: Tensor) -> None:
    """Declared, finite, float32, of the right shape, and nearer to the weight than zeros would be.

    What a quantizer with a Hessian promises is the error of outputs; that of weights may grow.
    """
    assert quantized.shape == tuple(weight.shape)
    dense = quantized.dequantize()
    assert dense.dtype == torch.float32
    assert dense.shape == weight.shape
    assert bool(torch.isfinite(dense).all())
    assert quantized.nominal_bits > 0
    statistics = statistics_for(registry().quantizer(name).needs, weight.shape[1])
    hessian = None if statistics is None else statistics.hessian
    assert energy(dense - weight, hessian) <= energy(weight, hessian) * (1 + 1e-6)


def energy(matrix: Tensor, hessian: Tensor | None) -> float:
    matrix = matrix.double()
    return float(matrix.square().sum() if hessian is None else ((matrix @ hessian.double()) * matrix).sum())


def test_there_is_something_to_check() -> None:
    assert QUANTIZERS
    assert METHODS


@each_quantizer
@each_shape
def test_any_shape_is_quantized_and_packed(quantize: Any, name: str, shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)
    quantized = quantize(name, weight)
    assert_sound(name, quantized, weight)
    assert_packs(quantized)


@each_quantizer
@each_special
def test_degenerate_weights_are_quantized_and_packed(quantize: Any, name: str, kind: str) -> None:
    weight = special_weights()[kind]
    quantized = quantize(name, weight)
    assert_sound(name, quantized, weight)
    assert_packs(quantized)


@each_quantizer
def test_zero_rows_stay_zero(quantize: Any, name: str) -> None:
    weight = gaussian(5, 100)
    weight[2] = 0
    dense = quantize(name, weight).dequantize()
    assert torch.equal(dense[2], torch.zeros(100))
    assert dense[[0, 1, 3, 4]].any(-1).all()


@each_quantizer
def test_one_seed_decides_everything(quantize: Any, name: str) -> None:
    weight = gaussian(9, 130)
    first = quantize(name, weight, seed=3)
    torch.manual_seed(0)
    torch.rand(7)
    assert_same(first, quantize(name, weight, seed=3))


@each_quantizer
def test_the_global_random_state_is_left_alone(quantize: Any, name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    quantize(name, gaussian(4, 64))
    assert torch.equal(torch.get_rng_state(), before)


@each_quantizer
def test_the_weight_is_not_changed_and_not_kept(quantize: Any, name: str) -> None:
    weight = gaussian(6, 100)
    copy = weight.clone()
    quantized = quantize(name, weight)
    assert torch.equal(weight, copy)
    dense = quantized.dequantize().clone()
    weight.zero_()
    assert torch.equal(quantized.dequantize(), dense)


@each_quantizer
def test_a_strided_weight_gives_the_same(quantize: Any, name: str) -> None:
    weight = gaussian(6, 100)
    assert_same(quantize(name, weight), quantize(name, weight.t().contiguous().t()))


@each_quantizer
def test_the_format_is_registered_so_that_a_checkpoint_can_be_read(quantize: Any, name: str) -> None:
    quantized = quantize(name, gaussian(2, 64))
    assert registry().format(quantized.format) is type(quantized)


@each_quantizer
def test_every_option_is_documented_and_has_a_default_that_validates(name: str) -> None:
    config = registry().quantizer(name).Config
    assert [key for key, field in config.model_fields.items() if not field.description] == []
    assert config.model_validate(config().model_dump(mode="json")) == config()


@each_quantizer
def test_quantizers_and_their_configs_say_what_they_are(name: str) -> None:
    quantizer = registry().quantizer(name)
    assert quantizer.__doc__
    assert quantizer.Config.__doc__


@pytest.mark.parametrize("name", PACKERS)
def test_a_packer_serves_registered_formats_only(name: str) -> None:
    served = set(registry().packer(name).formats)
    assert served
    assert served <= {*registry().table("format"), "*"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resolves_to_a_whole_recipe(name: str) -> None:
    recipe = resolve_recipe(registry(), name)
    method = registry().method(name)
    assert recipe.method == name
    assert method.description
    if method.quantizer is None:
        assert recipe.quantizer is None
        return
    assert recipe.quantizer is not None
    assert recipe.quantizer.name == method.quantizer
    assert set(recipe.quantizer.options) == set(registry().quantizer(method.quantizer).Config.model_fields)
    assert method.options.items() <= recipe.quantizer.options.items()


@pytest.mark.parametrize("name", [name for name in METHODS if registry().method(name).quantizer])
def test_every_method_quantizes_with_its_own_options_and_packer(quantize: Any, name: str) -> None:
    recipe = resolve_recipe(registry(), name)
    assert recipe.quantizer is not None
    weight = gaussian(8, 172)
    quantized = quantize(recipe.quantizer.name, weight, **recipe.quantizer.options)
    assert_sound(recipe.quantizer.name, quantized, weight)
    assert recipe.packer.name in {packer.name for packer in packers_for(quantized)}
    assert_packs(quantized)
