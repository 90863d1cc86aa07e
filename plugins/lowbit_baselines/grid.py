"""The uniform grid that round to nearest and GPTQ put over a group's range."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UniformGrid:
    """A grid of 2^bits levels, scale * (code - zero point), over a range that always includes zero.

    Args:
        bits: Bits a code, 1 to 8.
        symmetric: Fix the zero point at the middle of the grid, 2^(bits-1), so that one more level lies below zero
            than above. GPTQ's code uses half that range for a group without negative weights; this does not.
    """

    bits: int
    symmetric: bool

    @property
    def largest_code(self) -> int:
        """2^bits - 1."""
        return int(2**self.bits - 1)

    def span(self, groups: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return the lowest value and the scale of groups; `dim` runs over a group's weights and is reduced."""
        lowest, highest = groups.amin(dim).clamp_max(0), groups.amax(dim).clamp_min(0)
        if self.symmetric:
            largest = torch.maximum(-lowest, highest)
            return -largest, 2 * largest / self.largest_code
        return lowest, (highest - lowest) / self.largest_code

    def zero_points(self, lowest: Tensor, scales: Tensor) -> Tensor:
        """Return integer zero points as float32 for scales as they are stored; a group of zeros gets 0."""
        if self.symmetric:
            return torch.full_like(scales, (self.largest_code + 1) // 2)
        ratio = torch.where(scales > 0, -lowest / scales, 0)
        return ratio.round().clamp(0, self.largest_code)

    def divisors(self, scales: Tensor) -> Tensor:
        """Return what weights are divided by: the scales, or infinity for groups of zeros."""
        return torch.where(scales > 0, scales, torch.inf)

    def codes(self, weight: Tensor, divisors: Tensor, zero_points: Tensor) -> Tensor:
        """Return the codes as float32; divisors and zero points broadcast against the weight."""
        return (weight / divisors).round_().add_(zero_points).clamp_(0, self.largest_code)
