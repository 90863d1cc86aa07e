"""Trainable fake-quantized weights in the place of a model's parameters, on every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distillation.small_training import quantized_parent, trainable_weights
from small_models import ARCHITECTURES, ModelFolder, load_model, logits
from torch import nn

from lowbit.distillation.parametrized import ParametrizedWeights
from lowbit.errors import LowbitError
from lowbit.models import read_weight, write_weight


@torch.no_grad()
def with_dense(folder: Path, dense: dict[str, torch.Tensor], weights: list) -> nn.Module:
    model = load_model(folder)
    for weight in weights:
        write_weight(model, weight.target, dense[weight.target.name])
    return model


def step(model: nn.Module, weights: ParametrizedWeights) -> None:
    """Take two steps downhill from the square of the logits."""
    trained = list(weights.trained().values())
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    tokens = torch.arange(3, 27).reshape(2, 12)
    for _ in range(2):
        model(input_ids=tokens, use_cache=False).logits.square().mean().backward()
        assert all(tensor.grad is not None and bool(torch.isfinite(tensor.grad).all()) for tensor in trained)
        assert all(bool(tensor.grad.any()) for tensor in weights.latent_weights().values())
        optimizer.step()
        optimizer.zero_grad()
        weights.project()


QUICK = ("llama", "opt", "gpt2", "gemma3", "mixtral")
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.parametrize("architecture", EACH)
def test_weights_attach_train_freeze_and_detach(architecture: str, parent: ModelFolder) -> None:
    folder = parent(architecture)
    model = load_model(folder).requires_grad_(False)
    names = set(model.state_dict())
    made = quantized_parent(folder)
    weights = ParametrizedWeights(model, made, {})
    start = {weight.target.name: weight.quantized.dequantize() for weight in made}
    assert torch.allclose(logits(model), logits(with_dense(folder, start, made)), atol=1e-5)

    step(model, weights)
    frozen = weights.freeze()
    assert list(frozen) == [weight.target.name for weight in made]
    dense = {name: weight.dequantize() for name, weight in frozen.items()}
    assert any(not torch.equal(dense[name], start[name]) for name in dense)
    assert torch.allclose(logits(model), logits(with_dense(folder, dense, made)), atol=1e-5)

    latents = {name: tensor.detach().clone() for name, tensor in weights.latent_weights().items()}
    weights.detach()
    assert set(model.state_dict()) == names
    parameters = dict(model.named_parameters())
    for name, latent in latents.items():
        assert torch.equal(parameters[name.removesuffix(".latent_weight")], latent)


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
def test_a_state_gives_the_same_weights_elsewhere(architecture: str, parent: ModelFolder) -> None:
    folder = parent(architecture)
    model, again = (load_model(folder).requires_grad_(False) for _ in range(2))
    weights = ParametrizedWeights(model, quantized_parent(folder), {})
    step(model, weights)
    state = weights.state()
    copied = ParametrizedWeights(again, quantized_parent(folder), state)
    assert torch.equal(logits(model), logits(again))
    assert copied.state().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in copied.state().items())
    state[next(iter(state))].zero_()
    assert torch.equal(logits(model), logits(again))


def test_scales_and_latent_weights_are_told_apart(parent: ModelFolder) -> None:
    model = load_model(parent("mixtral")).requires_grad_(False)
    weights = ParametrizedWeights(model, quantized_parent(parent("mixtral")), {})
    experts = [name for name in weights.latent_weights() if "experts" in name]
    assert len(experts) == 2 * 3
    assert len([name for name in weights.scales() if ".experts" in name]) == 2 * 2 * 4 * 3
    assert {id(tensor) for tensor in weights.trained().values()} == {
        id(parameter) for parameter in model.parameters() if parameter.requires_grad
    }


def test_a_quantizer_without_training_is_refused_by_name(parent: ModelFolder) -> None:
    model = load_model(parent("llama"))
    made = trainable_weights(model, parent("llama"), "rtn")
    with pytest.raises(LowbitError, match="quantizer rtn offers no training"):
        ParametrizedWeights(model, made, {})
    assert read_weight(model, made[0].target).is_leaf
