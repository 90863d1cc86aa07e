"""Rounding a column to its levels: two for a binarized weight, a uniform grid a row for a salient one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit import RoundColumn


@dataclass(frozen=True)
class Levels:
    """What the weights of a matrix are rounded to.

    Args:
        means: Centre of a group's two binary levels, float32 [groups, out].
        scales: Their distance from it, float32 [groups, out].
        salient_scales: Step of each row's grid, float32 [out]; 0 for a row of zeros.
        zero_points: Code that stands for 0, float32 [out].
        high_bits: Bits of a code of the grid.
        group_columns: Columns a group.
    """

    means: Tensor
    scales: Tensor
    salient_scales: Tensor
    zero_points: Tensor
    high_bits: int
    group_columns: int


def grid_steps(lowest: Tensor, highest: Tensor, high_bits: int) -> Tensor:
    """Return the step of each row's grid: from the smallest to the largest weight, 0 included.

    Args:
        lowest: Smallest weight of each row, float32 [out], not above 0.
        highest: Largest weight of each row, float32 [out], not below 0.
        high_bits: Bits of a code.
    """
    return (highest - lowest) / float(2**high_bits - 1)


def grid_zero_points(lowest: Tensor, steps: Tensor, high_bits: int) -> Tensor:
    """Return round(-lowest / step), the code that stands for 0, float32 [out]; 0 for a row of zeros."""
    return torch.where(steps > 0, -lowest / steps, 0).round().clamp(0, 2**high_bits - 1)


class ColumnRounder:
    """Rounds the columns of a matrix, block by block, and keeps their codes.

    The sign of a weight that equals the mean counts as +1, since the sign plane has no 0; the authors' code would put
    the mean itself there.

    Args:
        levels: What to round to.
        salient: bool [in, out].
    """

    def __init__(self, levels: Levels, salient: Tensor) -> None:
        self._levels = levels
        self._salient = salient
        self._upper = (levels.means + levels.scales).unbind()  # [out] each
        self._lower = (levels.means - levels.scales).unbind()
        self._means = levels.means.unbind()
        # A weight divided by infinity is 0, which the zero point of a row of zeros stands for.
        self._divisors = levels.salient_scales.masked_fill(levels.salient_scales == 0, torch.inf)
        self._highest = 2**levels.high_bits - 1 - levels.zero_points
        self.codes = torch.empty(salient.shape, dtype=torch.uint8, device=salient.device)

    def start(self, start: int, stop: int) -> RoundColumn:
        """Begin the columns from `start` to `stop`, which must all be rounded before `codes` holds their codes.

        Returns:
            Rounds one column: (position in the block, weights float32 [out]) to what their codes stand for.
        """
        levels, salient = self._levels, self._salient[start:stop].unbind()
        shape = (stop - start, self._salient.shape[1])
        signs = torch.empty(shape, dtype=torch.bool, device=self._divisors.device)
        steps = torch.empty(shape, device=self._divisors.device)
        lowest = -levels.zero_points

        def round_column(position: int, weights: Tensor) -> Tensor:
            group = (start + position) // levels.group_columns
            sign = torch.ge(weights, self._means[group], out=signs[position])
            step = torch.div(weights, self._divisors, out=steps[position]).round_().clamp_(lowest, self._highest)
            low = torch.where(sign, self._upper[group], self._lower[group])
            if position == shape[0] - 1:
                self._keep(start, stop, signs, steps)
            return torch.where(salient[position], step * levels.salient_scales, low)

        return round_column

    def _keep(self, start: int, stop: int, signs: Tensor, steps: Tensor) -> None:
        """Keep a block's codes: the grid's for salient weights, for others the sign as top bit."""
        top_bit = 2.0 ** (self._levels.high_bits - 1)
        codes = torch.where(self._salient[start:stop], steps + self._levels.zero_points, signs * top_bit)
        self.codes[start:stop] = codes
