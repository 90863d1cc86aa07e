"""Dual binarization of a matrix as training runs it, and its three backward rules.

The paper passes gradients through the step functions of its codes straight and says no more. Three rules make that
precise; they agree in the forward pass and differ in what the scales and the latent weight receive.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowbit import group_pieces
from lowbit_dbllm.sorted_levels import SortedLevels

GradientRule = Literal["levels", "codes", "identity", "identity-unscaled"]


class DualBinarization(torch.autograd.Function):
    """alpha1 * b1 + alpha2 * b2 with nearest-level codes.

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
    def forward(
        ctx: Any, weight: Tensor, alpha1: Tensor, alpha2: Tensor, sign: Tensor, group_size: int, rule: GradientRule
    ) -> Tensor:
        """Return the quantized matrix, float [out, in].

        Args:
            ctx: Keeps what the backward pass needs.
            weight: [out, in].
            alpha1: In the plain orientation, [out, groups].
            alpha2: In the plain orientation, [out, groups].
            sign: 1 for groups in the plain orientation, -1 for mirrored ones, [out, groups].
            group_size: Columns a group, or -1 for whole rows.
            rule: How gradients are formed.
        """
        quantized = torch.empty_like(weight)
        for (found, groups), scales in group_pieces((quantized, weight), (alpha1, alpha2, sign), group_size):
            SortedLevels(*scales).quantize(groups, found)
        ctx.save_for_backward(weight, quantized, alpha1, alpha2, sign)
        ctx.group_size, ctx.rule = group_size, rule
        return quantized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weight, alpha1 and alpha2."""
        weight, quantized, alpha1, alpha2, sign = ctx.saved_tensors
        outgoing = torch.empty_like(weight), torch.empty_like(alpha1), torch.empty_like(alpha2)
        pieces = group_pieces(
            (weight, quantized, gradient, outgoing[0]), (alpha1, alpha2, sign, *outgoing[1:]), ctx.group_size
        )
        for (groups, levels, incoming, to_groups), (first, second, signs, to_first, to_second) in pieces:
            found = _RULES[ctx.rule](SortedLevels(first, second, signs), groups, levels, incoming)
            for target, value in zip((to_groups, to_first, to_second), found, strict=True):
                target.copy_(value)
        return (*outgoing, None, None, None)


def dual_binarization(
    weight: Tensor, alpha1: Tensor, alpha2: Tensor, sign: Tensor, group_size: int, rule: GradientRule
) -> Tensor:
    """Quantize a matrix as `DualBinarization` says."""
    quantized: Tensor = DualBinarization.apply(  # type: ignore[no-untyped-call]
        weight, alpha1, alpha2, sign, group_size, rule
    )
    return quantized


Gradients = tuple[Tensor, Tensor, Tensor]


def _total(products: Tensor) -> Tensor:
    return products.sum(-1, keepdim=True)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum over each group of the products, [rows, groups, 1]."""
    products: Tensor = torch.linalg.vecdot(first, second)
    return products.unsqueeze(-1)


def _through_levels(levels: SortedLevels, weight: Tensor, quantized: Tensor, gradient: Tensor) -> Gradients:
    below, above = levels.below(weight), levels.above(weight)
    inside = gradient - gradient * below - gradient * above
    # (r - t) D is what rounding added; D is alpha1 + alpha2 in the middle gap and -alpha2 in the two outer ones.
    added = (quantized - weight).mul_(inside)
    middle = _product(added, levels.in_middle_gap(weight))
    in_middle = middle / _divisor(levels.alpha1 + levels.alpha2)
    in_outer = (_total(added) - middle) / _divisor(levels.alpha2)
    lowest, highest = _product(gradient, below), _product(gradient, above)
    plain = levels.sign > 0
    to_alpha1 = in_middle + torch.where(plain, highest, -lowest)
    to_alpha2 = in_middle + in_outer + torch.where(plain, lowest, -highest)
    return inside, to_alpha1, to_alpha2


def _constant_codes(levels: SortedLevels, weight: Tensor, quantized: Tensor, gradient: Tensor) -> Gradients:
    inside = gradient - gradient * levels.below(weight) - gradient * levels.above(weight)
    plane1, plane2 = levels.planes(weight)
    return inside, levels.sign * _product(gradient, plane1), levels.sign * _product(gradient, plane2)


def _scaled_steps(levels: SortedLevels, weight: Tensor, quantized: Tensor, gradient: Tensor) -> Gradients:
    return _through_steps(levels, weight, gradient, 3 / _divisor(levels.alpha1 - levels.alpha2))


def _unscaled_steps(levels: SortedLevels, weight: Tensor, quantized: Tensor, gradient: Tensor) -> Gradients:
    return _through_steps(levels, weight, gradient, torch.ones_like(levels.alpha1))


def _through_steps(levels: SortedLevels, weight: Tensor, gradient: Tensor, slope: Tensor) -> Gradients:
    """Differentiate b1 = H(w - (alpha1 + alpha2) / 2) and b2 = H(alpha1 * b1 + alpha2 / 2 - w), with H' = slope."""
    alpha1, alpha2 = levels.alpha1, levels.alpha2
    plane1, plane2 = levels.planes(weight)
    first = -slope / 2  # d b1 / d alpha1 = d b1 / d alpha2
    second_by_1 = slope * (plane1 + alpha1 * first)
    second_by_2 = slope * (0.5 + alpha1 * first)
    second_by_weight = slope * (alpha1 * slope - 1)
    to_alpha1 = plane1 + alpha1 * first + alpha2 * second_by_1
    to_alpha2 = plane2 + alpha1 * first + alpha2 * second_by_2
    by_weight = alpha1 * slope + alpha2 * second_by_weight
    return (
        gradient * by_weight,
        levels.sign * _product(gradient, to_alpha1),
        levels.sign * _product(gradient, to_alpha2),
    )


_RULES = {
    "levels": _through_levels,
    "codes": _constant_codes,
    "identity": _scaled_steps,
    "identity-unscaled": _unscaled_steps,
}


def _divisor(scale: Tensor) -> Tensor:
    """Return a divisor that is 1 where a group is dead and its scale 0."""
    return torch.where(scale == 0, 1, scale)
