"""The four levels of a group in ascending order, mirrored or not, and the planes by comparison with three thresholds.

Floating-point arithmetic that saturates to 0 or 1 runs several times faster on a CPU than comparisons and selections,
and this is done to every matrix in every training step. The planes are exactly those of `assign_codes`.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEEPNESS = 2.0**115
"""Turns any difference of ordinary float32 numbers into one beyond 1."""


class SortedLevels:
    """Levels of groups: alpha2 < 0 < alpha1 + alpha2 < alpha1, or their negatives.

    Args:
        alpha1: In the plain orientation, [rows, groups, 1].
        alpha2: In the plain orientation, [rows, groups, 1]; both are 0 in a dead group.
        sign: 1 for the plain orientation, -1 for the mirrored one, [rows, groups, 1].
    """

    def __init__(self, alpha1: Tensor, alpha2: Tensor, sign: Tensor) -> None:
        self.alpha1, self.alpha2, self.sign = alpha1, alpha2, sign
        self._plain = sign > 0
        self._lowest = torch.where(self._plain, alpha2, -alpha1)
        self._highest = torch.where(self._plain, alpha1, -alpha2)
        middle = alpha1 + alpha2
        self._middle = torch.where(self._plain, 0, -middle), torch.where(self._plain, middle, 0)
        self._mirrored_share = torch.where(self._plain, 0.0, 1.0).to(alpha1.dtype)

    def _thresholds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return three thresholds; the paper's step functions, 1 at 0, say which side a weight on one belongs to.

        In the plain orientation b1 is set from (alpha1 + alpha2) / 2 on, and b2 up to alpha2 / 2 and, where b1 is set,
        as long as w - alpha1 <= alpha2 / 2. A weight counts as beyond a threshold if it is greater.
        """
        half = self.alpha2 / 2
        low, center, top = half, (self.alpha1 + self.alpha2) / 2, self.alpha1 + half
        # Where rounding lifted the last threshold, w - alpha1 is exact and still tells.
        top = torch.where(top - self.alpha1 > half, _before(top), top)
        # Plain: beyond `low`, from `center` on, beyond `top`. Mirrored: from -top on, beyond -center, from -low on.
        return (
            torch.where(self._plain, low, _before(-top)),
            torch.where(self._plain, _before(center), -center),
            torch.where(self._plain, top, _before(-low)),
        )

    def planes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return b1 and b2 of weights [rows, groups, columns] as 0.0 and 1.0."""
        first, second, third = (_beyond(weight, threshold) for threshold in self._thresholds())
        # Plain: b1 = second, b2 = 1 - first + second - third. Mirrored: b1 = 1 - second, b2 = first - second + third.
        alternating = first.sub_(second).add_(third)
        plane1 = second.mul_(self.sign).add_(self._mirrored_share)
        plane2 = alternating.mul_(-self.sign).add_(1 - self._mirrored_share)
        return plane1, plane2

    def quantize(self, weight: Tensor, found: Tensor) -> None:
        """Write alpha1 * b1 + alpha2 * b2, with the orientation's sign, to `found`, shaped like `weight`."""
        plane1, plane2 = self.planes(weight)
        torch.mul(plane1, self.alpha1 * self.sign, out=found)
        # Two products and one sum, as in dequantizing: a fused one would round otherwise.
        found.add_(plane2.mul_(self.alpha2 * self.sign))

    def below(self, weight: Tensor) -> Tensor:
        """Return 1.0 where a weight is less than the lowest level, else 0.0."""
        return torch.sub(self._lowest, weight).mul_(STEEPNESS).clamp_(0, 1)

    def above(self, weight: Tensor) -> Tensor:
        """Return 1.0 where a weight is greater than the highest level, else 0.0."""
        return _beyond(weight, self._highest)

    def in_middle_gap(self, weight: Tensor) -> Tensor:
        """Return 1.0 between the two inner levels, else 0.0."""
        return _beyond(weight, self._middle[0]).sub_(_beyond(weight, self._middle[1]))


def _beyond(weight: Tensor, threshold: Tensor) -> Tensor:
    """Return 1.0 where a weight is greater than its group's threshold, else 0.0."""
    return torch.sub(weight, threshold).mul_(STEEPNESS).clamp_(0, 1)


def _before(threshold: Tensor) -> Tensor:
    """Return the next smaller number."""
    return torch.nextafter(threshold, torch.full_like(threshold, -torch.inf))
