"""What the alternating refinements of ARB-LLM share: their options, their result, and the nearest of four sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_billm.binarize import Round

SMALLEST_DENOMINATOR = 1e-30
"""Below it a least-squares denominator, of weights near 1, is nothing but underflow."""


@dataclass(frozen=True)
class Refinement:
    """How groups of weights are refined.

    Args:
        iterations: Rounds of updates of means, scales and signs.
        calibrated_iterations: Rounds of updates of means and scales that weigh errors by the inputs (ARB-X).
        epsilon: Added to denominators that are counts, or sums of squares of column scales.
        column_epsilon: Added to denominators that are sums of squares of row scales.
        keep_best: Whether an update that would raise the objective is refused.
        stored: Rounds the means and scales of each row, [values, out], to what will be stored.
        stored_columns: Rounds the scales of each column, [order, columns].
    """

    iterations: int
    calibrated_iterations: int
    epsilon: float
    column_epsilon: float
    keep_best: bool
    stored: Round
    stored_columns: Round


@dataclass(frozen=True)
class BinaryGroup:
    """One group of a block: mean + sum over orders of row scale * column scale * sign.

    Args:
        mean: float32 [out].
        row_scales: float32 [order, out].
        column_scales: float32 [order, columns], or [0, columns] where there are none.
        signs: bool [order, out, columns]; outside the group they mean nothing.
    """

    mean: Tensor
    row_scales: Tensor
    column_scales: Tensor
    signs: Tensor

    def dequantize(self) -> Tensor:
        """Return the values as float32 [out, columns], also outside the group."""
        scales = self.row_scales.unsqueeze(2)
        if len(self.column_scales):
            scales = scales * self.column_scales.unsqueeze(1)
        return self.mean.unsqueeze(1) + (plus_minus(self.signs) * scales).sum(0)


def plus_minus(signs: Tensor) -> Tensor:
    """Return +1 where true, -1 where false, float32."""
    return signs.float().mul_(2).sub_(1)


def nearest_signs(target: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the signs whose sum s1 * first + s2 * second is nearest to the target: of four sums the best.

    The scale of larger magnitude takes the target's side, the other one that of what is left.

    Args:
        target: float32 [out, columns].
        first: Scales that broadcast against it; of either sign.
        second: As `first`.

    Returns:
        bool [2, out, columns].
    """
    swap = second.abs() > first.abs()
    large, small = torch.where(swap, second, first), torch.where(swap, first, second)
    above = target >= 0
    left = target.abs() - large.abs()  # what is left, towards the target's side
    beyond = (left >= 0) == above
    of_large, of_small = above == (large >= 0), beyond == (small >= 0)
    return torch.stack([torch.where(swap, of_small, of_large), torch.where(swap, of_large, of_small)])


def ratio(numerator: Tensor, denominator: Tensor, epsilon: float) -> Tensor:
    """Return a least-squares scale numerator / (denominator + epsilon), and 0 where nothing determines it."""
    raised = denominator + epsilon
    known = raised > SMALLEST_DENOMINATOR
    return torch.where(known, numerator / torch.where(known, raised, 1.0), 0.0)
