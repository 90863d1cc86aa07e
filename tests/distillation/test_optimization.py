"""Schedule, relative rates and divergence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowbit.contracts import OptimizationSettings
from lowbit.distillation.gradients import average_gradients, clip_gradients
from lowbit.distillation.optimization import FIRST_STEPS, has_diverged, make_optimizer, rate_at, set_rate


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_rises_then_falls_and_ends_above_its_floor(steps: int, warmup: float, final: float) -> None:
    settings = OptimizationSettings(steps=steps, warmup=warmup, final_rate=final)
    rates = [rate_at(step, settings) for step in range(steps)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates[: peak + 1])
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(rate >= final - 1e-12 for rate in rates[peak:] if peak < steps - 1)


def test_the_schedule_is_a_linear_rise_and_half_a_cosine() -> None:
    settings = OptimizationSettings(steps=20, warmup=0.2, final_rate=0.1)
    assert [rate_at(step, settings) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate_at(12, settings) == pytest.approx(0.55)
    assert rate_at(20, settings) == pytest.approx(0.1)


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_the_first_step_moves_a_tensor_by_its_rate_times_its_size(size: float) -> None:
    settings = OptimizationSettings(weight_rate=0.02, scale_rate=0.01)
    weight, scale = (nn.Parameter(size * torch.randn(40, 30)) for _ in range(2))
    before = [tensor.detach().clone() for tensor in (weight, scale)]
    optimizer = make_optimizer({"w": weight}, {"s": scale}, settings)
    set_rate(optimizer, 0.5)
    for tensor in (weight, scale):
        tensor.grad = torch.randn_like(tensor)
    optimizer.step()
    for tensor, start, rate in zip((weight, scale), before, (0.02, 0.01), strict=True):
        moved = (tensor.detach() - start).abs() / start.square().mean().sqrt()
        assert torch.allclose(moved, torch.full_like(moved, 0.5 * rate), rtol=1e-3)


def test_a_tensor_of_zeros_trains_at_the_absolute_rate() -> None:
    optimizer = make_optimizer({}, {"s": nn.Parameter(torch.zeros(3))}, OptimizationSettings(scale_rate=0.01))
    assert optimizer.param_groups[0]["full_rate"] == 0.01


def test_only_latent_weights_decay() -> None:
    weight, scale = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = make_optimizer({"w": weight}, {"s": scale}, OptimizationSettings(weight_decay=0.3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_gradient_that_is_not_finite_is_divergence(value: float) -> None:
    assert has_diverged(value, 1.0, [], OptimizationSettings())
    assert has_diverged(1.0, value, [], OptimizationSettings())


def test_an_exploding_loss_is_divergence_once_the_usual_one_is_known() -> None:
    settings = OptimizationSettings(explosion=10)
    usual = [1.0, 1.2, 0.8, 1.1, 30.0]
    assert not has_diverged(1e6, 1.0, usual[: FIRST_STEPS - 1], settings)
    assert not has_diverged(10.9, 1.0, usual, settings)
    assert has_diverged(11.1, 1.0, usual, settings)


def test_a_loss_that_began_at_zero_may_rise() -> None:
    assert not has_diverged(1e-3, 1.0, [0.0] * FIRST_STEPS, OptimizationSettings())


@pytest.mark.parametrize("limit", [0.1, 3.0, 1e9, None])
def test_clipping_is_over_the_norm_of_all_gradients(limit: float | None) -> None:
    parameters = [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(5))]
    gradients = [torch.randn(4, 3), torch.randn(5)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    expected = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    assert clip_gradients(parameters, limit) == pytest.approx(expected)
    share = min(1.0, (limit or math.inf) / expected)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, share * gradient)


def test_what_no_token_reached_has_gradient_zero() -> None:
    parameter = nn.Parameter(torch.ones(2))
    average_gradients([parameter], processes=1)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0.0, 0.0]
