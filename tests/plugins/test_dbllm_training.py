"""Dual binarization in training: its planes against the paper's step functions, its gradients against autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_dbllm import FlexibleDualBinarization
from lowbit_dbllm.gradients import GradientRule, dual_binarization
from lowbit_dbllm.levels import assign_codes
from lowbit_dbllm.sorted_levels import SortedLevels
from torch import Tensor

RULES: list[GradientRule] = ["levels", "codes", "identity", "identity-unscaled"]
ROWS, GROUPS, COLUMNS = 5, 3, 16


def scales(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha1, alpha2 in order, and orientations, [ROWS, GROUPS] each."""
    generator = torch.Generator().manual_seed(seed)
    alpha2 = -0.2 - torch.rand(ROWS, GROUPS, generator=generator, dtype=dtype)
    alpha1 = -alpha2 + 0.1 + torch.rand(ROWS, GROUPS, generator=generator, dtype=dtype)
    sign = torch.randint(2, (ROWS, GROUPS), generator=generator).to(dtype) * 2 - 1
    return alpha1, alpha2, sign


def weights(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return 1.3 * torch.randn(ROWS, GROUPS * COLUMNS, generator=generator, dtype=torch.float64)


def step(x: Tensor, slope: Tensor | float) -> Tensor:
    """The paper's step function, 1 from 0 on, with a constant derivative."""
    linear = x * slope
    return (x >= 0).to(x.dtype).detach() + linear - linear.detach()


def by_autograd(rule: str, weight: Tensor, alpha1: Tensor, alpha2: Tensor, sign: Tensor) -> Tensor:
    """Each rule written with differentiable operations and detached parts only, [ROWS, GROUPS * COLUMNS]."""
    first, second, signs = (part.unsqueeze(-1) for part in (alpha1, alpha2, sign))
    plain = weight.unflatten(1, (GROUPS, COLUMNS)) * signs
    if rule.startswith("identity"):
        slope = 3 / (first - second).detach() if rule == "identity" else 1.0
        plane1 = step(plain - (first + second) / 2, slope)
        plane2 = step(-(plain - first * plane1 - second / 2), slope)
        return ((first * plane1 + second * plane2) * signs).flatten(1)
    plane1, plane2 = (plane.to(plain.dtype) for plane in assign_codes(plain, first, second))
    inside = (plain >= second) & (plain <= first)
    if rule == "codes":
        through = torch.where(inside, plain - plain.detach(), 0)
        return ((first * plane1 + second * plane2 + through) * signs).flatten(1)
    clamped = torch.minimum(torch.maximum(plain, second), first)
    middle = first + second
    low = torch.where(clamped < 0, second, torch.where(clamped < middle, 0, middle))
    gap = torch.where((clamped >= 0) & (clamped < middle), middle, -second)
    position = (clamped - low) / gap
    rounded = position + (position.round() - position).detach()
    return ((low + gap * rounded) * signs).flatten(1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_those_of_the_rule_written_in_plain_operations(rule: GradientRule, seed: int) -> None:
    incoming = torch.randn(ROWS, GROUPS * COLUMNS, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = []
    for made in (lambda w, a, b, s: dual_binarization(w, a, b, s, COLUMNS, rule), lambda *a: by_autograd(rule, *a)):
        alpha1, alpha2, sign = scales(seed)
        leaves = [weights(seed).requires_grad_(), alpha1.requires_grad_(), alpha2.requires_grad_()]
        output = made(*leaves, sign)
        found.append((output.detach(), *torch.autograd.grad(output, leaves, incoming)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_straight_through_gradient_is_homogeneous(seed: int) -> None:
    alpha1, alpha2, sign = scales(seed)
    leaves = [weights(seed).requires_grad_(), alpha1.requires_grad_(), alpha2.requires_grad_()]
    output = dual_binarization(*leaves, sign, COLUMNS, "levels")
    gradients = torch.autograd.grad(output.sum(), leaves)
    total = sum((leaf * gradient).sum() for leaf, gradient in zip(leaves, gradients, strict=True))
    torch.testing.assert_close(total, output.sum())


def test_between_levels_the_scales_gradient_is_the_slope_of_what_rounding_adds() -> None:
    """With codes held, moving a scale moves the rounded weight by r dD and the latent one's share by t dD."""
    alpha1, alpha2, sign = torch.tensor([[1.3]]), torch.tensor([[-0.9]]), torch.ones(1, 1)
    weight = torch.tensor([[-0.8, -0.2, 0.05, 0.3, 0.7, 1.2]])
    leaves = [alpha1.requires_grad_(), alpha2.requires_grad_()]
    for column, (gap_by_1, gap_by_2, low, gap) in enumerate(
        [(0, -1, -0.9, 0.9)] * 2 + [(1, 1, 0.0, 0.4)] * 2 + [(0, -1, 0.4, 0.9)] * 2
    ):
        output = dual_binarization(weight, *leaves, sign, -1, "levels")[0, column]
        position = float(weight[0, column] - low) / gap
        change = round(position) - position
        found = torch.autograd.grad(output, leaves)
        assert float(found[0]) == pytest.approx(change * gap_by_1, abs=1e-5)
        assert float(found[1]) == pytest.approx(change * gap_by_2, abs=1e-5)


def test_an_unscaled_identity_leaves_latent_weights_nearly_untrained() -> None:
    for rule, bound in (("identity", 1.0), ("identity-unscaled", 0.2)):
        weight = (0.02 * weights()).requires_grad_()
        alpha1, alpha2 = torch.full((ROWS, GROUPS), 0.04).double(), torch.full((ROWS, GROUPS), -0.02).double()
        output = dual_binarization(weight, alpha1, alpha2, torch.ones_like(alpha1), COLUMNS, rule)  # type: ignore[arg-type]
        [gradient] = torch.autograd.grad(output.sum(), [weight])
        assert (
            float(gradient.abs().max()) == pytest.approx(1.0, abs=1e-6) if bound == 1 else float(gradient.max()) < bound
        )


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1.0, 1e4]), st.booleans())
def test_planes_are_exactly_those_of_the_step_functions(seed: int, size: float, ties: bool) -> None:
    alpha1, alpha2, sign = (part.float().unsqueeze(-1) for part in scales(seed, torch.float64))
    alpha1, alpha2 = alpha1 * size, alpha2 * size
    generator = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(ROWS, GROUPS, COLUMNS, generator=generator)
    if ties:
        levels = torch.cat([alpha2, alpha2 / 2, alpha1 * 0, (alpha1 + alpha2) / 2, alpha1 + alpha2 / 2, alpha1], -1)
        near = torch.nextafter(levels, torch.randn(levels.shape, generator=generator) * torch.inf)
        weight = torch.cat([levels, near], -1) * sign
    expected = assign_codes(weight * sign, alpha1, alpha2)
    for ours, theirs in zip(SortedLevels(alpha1, alpha2, sign).planes(weight), expected, strict=True):
        assert torch.equal(ours.bool(), theirs)
        assert set(ours.unique().tolist()) <= {0.0, 1.0}


def test_projection_restores_the_order_of_levels() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    quantizer = FlexibleDualBinarization()
    trained = quantizer.parametrize(weight, quantizer.quantize(weight, None, torch.Generator()))
    before = trained.alpha1.detach().clone()
    trained.project()
    assert torch.equal(trained.alpha1, before)
    with torch.no_grad():
        trained.alpha2.copy_(trained.alpha2.abs())
        trained.alpha1.sub_(10)
    trained.project()
    assert bool((trained.alpha2 < 0).all())
    assert bool((trained.alpha1 + trained.alpha2 > 0).all())
    frozen = quantizer.freeze(weight, trained)
    assert torch.equal(frozen.dequantize(), trained(weight))
    assert torch.equal(frozen.alpha1 < 0, trained.sign < 0)


def test_a_dead_group_stays_dead_and_its_gradients_are_zero() -> None:
    weight = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    weight[0, :64] = 0
    quantizer = FlexibleDualBinarization()
    trained = quantizer.parametrize(weight, quantizer.quantize(weight, None, torch.Generator()))
    latent = weight.clone().requires_grad_()
    output = trained(latent)
    output.square().sum().backward()
    assert torch.equal(output[0, :64], torch.zeros(64))
    for parameter in (trained.alpha1, trained.alpha2):
        assert parameter.grad is not None
        assert float(parameter.grad[0, 0]) == 0
        assert bool(torch.isfinite(parameter.grad).all())


def test_scales_alone_are_trained_when_the_latent_weight_is_frozen() -> None:
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    quantizer = FlexibleDualBinarization(FlexibleDualBinarization.Config(train_latent_weight=False))
    trained = quantizer.parametrize(weight, quantizer.quantize(weight, None, torch.Generator()))
    assert not trained.trains_latent_weight
    assert {name for name, _ in trained.named_parameters()} == {"alpha1", "alpha2"}
