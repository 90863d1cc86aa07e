"""What every quantizer that offers training must hold to, whoever wrote it.

Latent weights and parameters are float32: training in less is no part of the contract.
"""

from __future__ import annotations

import copy

import pytest
import torch
from plugins.matrices import assert_same, each_shape, each_special, gaussian, special_weights
from plugins.trained import assert_freezes_to_its_output, in_training, walk

from lowbit.registry import registry

QUANTIZERS = sorted(registry().table("weight quantizer"))
TRAINABLE = [name for name in QUANTIZERS if registry().quantizer(name).is_trainable()]
UNTRAINABLE = [name for name in QUANTIZERS if name not in TRAINABLE]

each_trainable = pytest.mark.parametrize("name", TRAINABLE)


def test_there_is_something_to_train() -> None:
    assert TRAINABLE
    assert UNTRAINABLE


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_others_say_that_they_offer_no_training(name: str) -> None:
    weight = gaussian(2, 64)
    with pytest.raises(NotImplementedError, match=f"{name} offers no training"):
        in_training(name, weight)


@each_trainable
@each_shape
def test_output_is_what_freezing_gives_before_and_after_steps(name: str, shape: tuple[int, int]) -> None:
    training = in_training(name, gaussian(*shape))
    assert_freezes_to_its_output(training)
    before = training.output().detach()
    walk(training, rate=0.05)
    assert_freezes_to_its_output(training)
    assert not torch.equal(training.output(), before)


@each_trainable
@each_special
@pytest.mark.parametrize("rate", [1e-3, 0.3])
def test_degenerate_weights_train_and_stay_finite(name: str, kind: str, rate: float) -> None:
    training = in_training(name, special_weights()[kind])
    assert_freezes_to_its_output(training)
    training.output().square().mean().backward()
    for parameter in training.trained():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
    walk(training, rate)
    assert_freezes_to_its_output(training)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in training.trained())


@each_trainable
@each_shape
def test_training_starts_from_the_quantized_weight_unless_its_class_says_otherwise(
    name: str, shape: tuple[int, int]
) -> None:
    training = in_training(name, gaussian(*shape))
    if training.parametrization.starts_as_quantized:
        assert torch.equal(training.output(), training.start.dequantize())
        assert_same(training.frozen(), training.start)
    else:
        assert "first output need not be" in " ".join(str(type(training.parametrization).__doc__).split())
        assert type(training.frozen()) is type(training.start)


@each_trainable
@pytest.mark.parametrize("shape", [(8, 64), (7, 65), (4, 172)], ids=str)
def test_gradients_are_finite_float32_and_of_their_shape(name: str, shape: tuple[int, int]) -> None:
    training = in_training(name, gaussian(*shape))
    training.output().backward(gaussian(*shape, seed=1))
    assert training.trained()
    for parameter in training.trained():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.shape == parameter.shape
        assert bool(torch.isfinite(parameter.grad).all())
        assert bool(parameter.grad.any())


@each_trainable
def test_a_latent_weight_that_needs_no_gradient_changes_no_other_gradient(name: str) -> None:
    weight, incoming = gaussian(6, 100), gaussian(6, 100, seed=1)
    whole, part = in_training(name, weight), in_training(name, weight)
    part.latent.requires_grad_(False)
    whole.output().backward(incoming)
    if not list(part.parametrization.parameters()):
        assert not part.output().requires_grad
        return
    part.output().backward(incoming)
    assert part.latent.grad is None
    pairs = zip(whole.parametrization.parameters(), part.parametrization.parameters(), strict=True)
    assert all(torch.equal(first.grad, second.grad) for first, second in pairs if first.grad is not None)


@each_trainable
def test_strides_change_nothing(name: str) -> None:
    training = in_training(name, gaussian(6, 100))
    walk(training, rate=0.01)
    strided = training.latent.detach().t().contiguous().t()
    assert torch.equal(training.parametrization(strided), training.output())
    assert torch.equal(training.quantizer.freeze(strided, training.parametrization).dequantize(), training.output())


@each_trainable
def test_one_seed_decides_everything_and_the_global_random_state_is_left_alone(name: str) -> None:
    weight = gaussian(9, 130)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        training = in_training(name, weight)
        training.output().square().sum().backward()
        assert torch.equal(torch.get_rng_state(), before)
        walk(training, rate=0.02)
        found.append((training.frozen(), [parameter.detach() for parameter in training.trained()]))
    assert_same(found[0][0], found[1][0])
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))


@each_trainable
def test_the_weight_and_its_start_are_not_changed_by_training(name: str) -> None:
    weight = gaussian(6, 100)
    training = in_training(name, weight)
    start = copy.deepcopy(training.start)
    walk(training, rate=0.1)
    assert torch.equal(weight, gaussian(6, 100))
    assert_same(training.start, start)


@each_trainable
def test_a_frozen_weight_does_not_change_with_further_training(name: str) -> None:
    training = in_training(name, gaussian(6, 100))
    walk(training, rate=0.02)
    frozen = training.frozen()
    dense = frozen.dequantize().clone()
    walk(training, rate=0.5)
    assert torch.equal(frozen.dequantize(), dense)
    assert not torch.equal(training.frozen().dequantize(), dense)


@each_trainable
def test_projecting_twice_is_projecting_once_and_changes_no_start(name: str) -> None:
    training = in_training(name, gaussian(6, 100))
    started = copy.deepcopy(training.parametrization.state_dict())
    training.parametrization.project()
    state = training.parametrization.state_dict()
    assert state.keys() == started.keys()
    assert all(torch.equal(tensor, started[key]) for key, tensor in state.items())
    walk(training, rate=0.5)
    projected = copy.deepcopy(training.parametrization.state_dict())
    training.parametrization.project()
    assert all(torch.equal(tensor, projected[key]) for key, tensor in training.parametrization.state_dict().items())


@each_trainable
def test_a_loaded_state_gives_the_same_output(name: str) -> None:
    weight = gaussian(6, 100)
    training, again = in_training(name, weight), in_training(name, weight)
    walk(training, rate=0.05)
    again.parametrization.load_state_dict(training.parametrization.state_dict())
    again.latent.data.copy_(training.latent)
    assert torch.equal(again.output(), training.output())
    assert_same(again.frozen(), training.frozen())


@each_trainable
@pytest.mark.parametrize("magnitude", [1.0, 0.02])
def test_descending_the_squared_error_to_a_target_lowers_it(name: str, magnitude: float) -> None:
    weight = gaussian(16, 128) * magnitude
    target = weight + magnitude * gaussian(16, 128, seed=1)
    training = in_training(name, weight)
    optimizer = torch.optim.AdamW(training.trained(), lr=0.03 * magnitude, weight_decay=0)
    errors = []
    for _ in range(40):
        error = (training.output() - target).square().mean()
        errors.append(float(error.detach()))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        training.parametrization.project()
    assert errors[-1] < 0.95 * errors[0]
    assert_freezes_to_its_output(training)
