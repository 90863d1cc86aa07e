"""The arithmetic of dual binarization: levels, codes and least-squares scales.

Everything here works on groups [rows, groups, group_size] in the plain orientation alpha2 < 0 < alpha1 + alpha2 <
alpha1, whose levels are alpha2, 0, alpha1 + alpha2 and alpha1. The mirrored orientation is the same on -w with
-alpha1 and -alpha2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

LEAST_GAIN = 8
"""Gains below so many rounding errors of a group's sum of squares count as none."""


def assign_codes(weight: Tensor, alpha1: Tensor, alpha2: Tensor) -> tuple[Tensor, Tensor]:
    """Choose b1 and b2 by the paper's two step functions, which round to the nearest level.

    b1 = H(w - (alpha1 + alpha2) / 2) and b2 = H(-(w - alpha1 * b1 - alpha2 / 2)) with H(x) = 1 for x >= 0. They are
    exactly nearest-level rounding as long as the levels keep their order. A group whose scales are zero gets zeros.

    Args:
        weight: [rows, groups, group_size], in the plain orientation.
        alpha1: [rows, groups, 1].
        alpha2: [rows, groups, 1].

    Returns:
        b1 and b2, bool, shaped like `weight`.
    """
    alive = alpha1 != 0
    plane1 = (weight >= (alpha1 + alpha2) / 2) & alive
    plane2 = (weight - alpha1 * plane1 <= alpha2 / 2) & alive
    return plane1, plane2


def is_ordered(alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """Say where alpha2 < 0 < alpha1 + alpha2 < alpha1 holds."""
    return (alpha2 < 0) & (alpha1 + alpha2 > 0)


def reconstruct(plane1: Tensor, plane2: Tensor, alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """Return alpha1 * b1 + alpha2 * b2."""
    return alpha1 * plane1 + alpha2 * plane2


def squared_error(weight: Tensor, plane1: Tensor, plane2: Tensor, alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """Return each group's squared error, [rows, groups, 1]."""
    return (weight - reconstruct(plane1, plane2, alpha1, alpha2)).square().sum(-1, keepdim=True)


def grid_search(
    weight: Tensor, candidates: int, orientations: Sequence[int] = (1,), importance: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Find the single scale s whose levels -s, 0, s, 2s give each group the smallest squared error.

    The candidates are fractions of the largest magnitude in the group, from 1/16 to 1; a half of it is the min-max
    scale, which is always among them.

    Args:
        weight: [rows, groups, group_size].
        candidates: How many scales to try.
        orientations: 1 for the plain orientation, -1 for the mirrored levels s, 0, -s, -2s.
        importance: What each weight's squared error counts, [1, groups, group_size]; `None` for 1.

    Returns:
        For each orientation the best s and its squared error, each [rows, groups, 1].
    """
    largest = weight.abs().amax(-1, keepdim=True)  # [rows, groups, 1]
    best = [(largest / 2, torch.full_like(largest, torch.inf)) for _ in orientations]
    ratio, rounded, error = (torch.empty_like(weight) for _ in range(3))
    root = None if importance is None else importance.sqrt()
    for fraction in [0.5, *torch.linspace(1 / 16, 1, candidates - 1).tolist()]:
        scale = largest * fraction
        torch.div(weight, scale.clamp_min(torch.finfo(weight.dtype).tiny), out=ratio)
        torch.round(ratio, out=rounded)
        for index, orientation in enumerate(orientations):
            torch.clamp(rounded, *((-1, 2) if orientation > 0 else (-2, 1)), out=error).sub_(ratio)
            if root is not None:
                error.mul_(root)
            total = torch.linalg.vector_norm(error, dim=-1, keepdim=True).mul_(scale).square_()
            before_scale, before = best[index]
            better = total < before
            best[index] = torch.where(better, scale, before_scale), torch.where(better, total, before)
    return best


@dataclass(frozen=True)
class PlaneSums:
    """What least squares needs to know of the planes of each group, each [groups, 1].

    With importance, a weight counts by it, both where weights are counted and where they are summed.

    Args:
        count1: Ones of b1.
        count2: Ones of b2.
        both: Weights with both.
        sum1: Sum of the weights with b1.
        sum2: Sum of the weights with b2.
    """

    count1: Tensor
    count2: Tensor
    both: Tensor
    sum1: Tensor
    sum2: Tensor

    def scales(self) -> tuple[Tensor, Tensor]:
        """Solve the 2 x 2 normal equations of min ||w - alpha1 * b1 - alpha2 * b2||^2 in each group.

        Where they are singular (a plane is empty, or both planes are equal) the result is NaN, which no order holds
        for.
        """
        determinant = self.count1 * self.count2 - self.both.square()
        determinant = torch.where(determinant > 0, determinant, torch.nan)
        alpha1 = (self.count2 * self.sum1 - self.both * self.sum2) / determinant
        alpha2 = (self.count1 * self.sum2 - self.both * self.sum1) / determinant
        return alpha1, alpha2

    def explained(self, alpha1: Tensor, alpha2: Tensor) -> Tensor:
        """Return by how much alpha1 * b1 + alpha2 * b2 lowers the squared error below the sum of squares."""
        linear = alpha1 * self.sum1 + alpha2 * self.sum2
        quadratic = alpha1.square() * self.count1 + alpha2.square() * self.count2 + 2 * alpha1 * alpha2 * self.both
        return 2 * linear - quadratic


def plane_sums(weight: Tensor, alpha1: Tensor, alpha2: Tensor, importance: Tensor | None = None) -> PlaneSums:
    """Return the sums over the nearest-level planes.

    The planes follow from three thresholds: b2 below alpha2 / 2, b1 from (alpha1 + alpha2) / 2 on, and b2 there too up
    to alpha1 + alpha2 / 2. Floating-point arithmetic saturates to 0 or 1 several times faster than it compares.

    Args:
        weight: [groups, group_size], in the plain orientation.
        alpha1: [groups, 1].
        alpha2: [groups, 1].
        importance: What each weight counts, [groups, group_size]; `None` for 1.
    """
    steep = torch.finfo(weight.dtype).max ** 0.9
    above, ones = torch.empty_like(weight), torch.empty_like(weight)

    def total(values: Tensor) -> Tensor:
        if importance is None:
            return values.sum(-1, keepdim=True)
        products: Tensor = torch.linalg.vecdot(values, importance)
        return products.unsqueeze(-1)

    def beyond(threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return number and sum of the weights above a threshold, each [groups, 1]."""
        torch.sub(weight, threshold, out=above)
        count = total(torch.mul(above, steep, out=ones).clamp_(0, 1))
        return count, total(above.clamp_min_(0)) + threshold * count

    count_low, sum_low = beyond(alpha2 / 2)
    count_high, sum_high = beyond((alpha1 + alpha2) / 2)
    count_top, sum_top = beyond(alpha1 + alpha2 / 2)
    both = count_high - count_top
    number = weight.shape[-1] if importance is None else importance.sum(-1, keepdim=True)
    return PlaneSums(
        count1=count_high,
        count2=number - count_low + both,
        both=both,
        sum1=sum_high,
        sum2=total(weight) - sum_low + sum_high - sum_top,
    )


def alternate(
    weight: Tensor, alpha1: Tensor, alpha2: Tensor, iterations: int, importance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Alternate nearest-level codes and least-squares scales; no group's error ever rises.

    Where new scales would break the order of the levels, or do not lower the error by more than rounding, the old pair
    stays and the group is done; later rounds work on the other groups only.

    Args:
        weight: [rows, groups, group_size], in the plain orientation.
        alpha1: Start, [rows, groups, 1].
        alpha2: Start, [rows, groups, 1].
        iterations: The most rounds; it stops when nothing changes.
        importance: What each weight's squared error counts, [1, groups, group_size]; `None` for 1.

    Returns:
        alpha1, alpha2 and the squared error with nearest-level codes, each [rows, groups, 1].
    """
    shape = alpha1.shape
    active = weight.flatten(0, 1)  # [active groups, group_size]
    first, second = alpha1.reshape(-1, 1).clone(), alpha2.reshape(-1, 1).clone()  # [all groups, 1]
    counts = None if importance is None else importance.expand_as(weight).flatten(0, 1)  # [active groups, group_size]
    sums = plane_sums(active, first, second, counts)
    explained = sums.explained(first, second)
    least_gain = LEAST_GAIN * torch.finfo(weight.dtype).eps * _energy(active, counts)
    places = torch.arange(len(active), device=weight.device)
    for _ in range(iterations):
        new1, new2 = sums.scales()
        sums = plane_sums(active, new1, new2, counts)
        now = sums.explained(new1, new2)
        better = (is_ordered(new1, new2) & (now - explained > least_gain)).squeeze(-1)
        kept = better.nonzero().squeeze(-1)
        if not len(kept):
            break
        places, active, explained, least_gain = places[kept], active[kept], now[kept], least_gain[kept]
        counts = None if counts is None else counts[kept]
        first[places], second[places] = new1[kept], new2[kept]
        sums = PlaneSums(*(getattr(sums, field.name)[kept] for field in fields(sums)))
    alpha1, alpha2 = first.reshape(shape), second.reshape(shape)
    difference = weight - reconstruct(*assign_codes(weight, alpha1, alpha2), alpha1, alpha2)
    return alpha1, alpha2, _energy(difference, importance)


def _energy(values: Tensor, importance: Tensor | None) -> Tensor:
    """Return the sum of squares of each group, [..., 1]."""
    squares = values.square()
    return (squares if importance is None else squares * importance).sum(-1, keepdim=True)
