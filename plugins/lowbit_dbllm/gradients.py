"""The backward rules of Flexible Dual Binarization.

The paper passes gradients through the step functions of its codes straight and says no more. Three rules make that
precise; they agree in the forward pass and differ in what the scales and the latent weight receive.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lowbit_dbllm.levels import assign_codes, reconstruct

GradientRule = Literal["levels", "codes", "identity", "identity-unscaled"]


class DualBinarization(torch.autograd.Function):
    """alpha1 * b1 + alpha2 * b2 with nearest-level codes, on groups in the plain orientation.

    With w between the adjacent levels l < u, D = u - l, t = (w - l) / D and r = 1 where w was rounded up, else 0:

    - `levels`: the latent weight's gradient goes straight through, as in learned-step quantization: d/dw = 1 between
      the outermost levels and d/d alpha = (r - t) dD/d alpha; beyond them d/dw = 0 and the outermost level's own
      gradient.
    - `codes`: the codes count as constants: d/d alpha1 = b1, d/d alpha2 = b2, and d/dw = 1 between the outermost
      levels.
    - `identity`: the derivative of each step function is 1 / s, with s = (alpha1 - alpha2) / 3 the unit of the levels,
      so that what it is applied to has no unit. `identity-unscaled` takes 1 instead, as plain automatic
      differentiation of an identity estimator does; d/dw is then near 0, which leaves latent weights untrained.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, alpha1: Tensor, alpha2: Tensor, rule: GradientRule) -> Tensor:
        """Return the quantized groups.

        Args:
            ctx: Keeps what the backward pass needs.
            weight: [rows, groups, group_size], in the plain orientation.
            alpha1: [rows, groups, 1].
            alpha2: [rows, groups, 1].
            rule: How gradients are formed.
        """
        plane1, plane2 = assign_codes(weight, alpha1, alpha2)
        ctx.save_for_backward(weight, alpha1, alpha2, plane1, plane2)
        ctx.rule = rule
        return reconstruct(plane1, plane2, alpha1, alpha2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weight, alpha1 and alpha2."""
        if ctx.rule == "levels":
            return (*_through_levels(gradient, *ctx.saved_tensors), None)
        if ctx.rule == "codes":
            return (*_constant_codes(gradient, *ctx.saved_tensors), None)
        return (*_through_steps(ctx.rule == "identity", gradient, *ctx.saved_tensors), None)


def dual_binarization(weight: Tensor, alpha1: Tensor, alpha2: Tensor, rule: GradientRule) -> Tensor:
    """Quantize groups as `DualBinarization` says."""
    quantized: Tensor = DualBinarization.apply(weight, alpha1, alpha2, rule)  # type: ignore[no-untyped-call]
    return quantized


Gradients = tuple[Tensor, Tensor, Tensor]


def _total(products: Tensor) -> Tensor:
    return products.sum(-1, keepdim=True)


def _through_levels(
    gradient: Tensor, weight: Tensor, alpha1: Tensor, alpha2: Tensor, plane1: Tensor, plane2: Tensor
) -> Gradients:
    below, above = weight < alpha2, weight > alpha1
    inside = gradient.masked_fill(below | above, 0)
    # (r - t) D is what rounding added; D is alpha1 + alpha2 in the middle gap and -alpha2 in the two outer ones.
    added = inside * (reconstruct(plane1, plane2, alpha1, alpha2) - weight)
    middle = (weight >= 0) & (weight <= alpha1 + alpha2)
    in_middle = _total(added * middle) / _divisor(alpha1 + alpha2)
    in_outer = (_total(added) - _total(added * middle)) / _divisor(alpha2)
    to_alpha1 = in_middle + _total(gradient * above)
    to_alpha2 = in_middle + in_outer + _total(gradient * below)
    return inside, to_alpha1, to_alpha2


def _constant_codes(
    gradient: Tensor, weight: Tensor, alpha1: Tensor, alpha2: Tensor, plane1: Tensor, plane2: Tensor
) -> Gradients:
    inside = gradient.masked_fill((weight < alpha2) | (weight > alpha1), 0)
    return inside, _total(gradient * plane1), _total(gradient * plane2)


def _through_steps(
    scaled: bool, gradient: Tensor, weight: Tensor, alpha1: Tensor, alpha2: Tensor, plane1: Tensor, plane2: Tensor
) -> Gradients:
    slope = 1 / _divisor((alpha1 - alpha2) / 3) if scaled else torch.ones_like(alpha1)
    # b1 = H(w - (alpha1 + alpha2) / 2) and b2 = H(alpha1 * b1 + alpha2 / 2 - w), each H with derivative `slope`.
    first = -slope / 2  # d b1 / d alpha1 = d b1 / d alpha2
    second_by_1 = slope * (plane1 + alpha1 * first)
    second_by_2 = slope * (0.5 + alpha1 * first)
    second_by_weight = slope * (alpha1 * slope - 1)
    to_alpha1 = plane1 + alpha1 * first + alpha2 * second_by_1
    to_alpha2 = plane2 + alpha1 * first + alpha2 * second_by_2
    by_weight = alpha1 * slope + alpha2 * second_by_weight
    return gradient * by_weight, _total(gradient * to_alpha1), _total(gradient * to_alpha2)


def _divisor(scale: Tensor) -> Tensor:
    """Return a divisor that is 1 where a group is dead and its scale 0."""
    return torch.where(scale == 0, 1, scale)
