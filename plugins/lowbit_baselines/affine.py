"""The affine format: k-bit codes with a step and an offset a group, both floating-point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from lowbit import Codes, QuantizedWeight, Scales, repeat_groups


@dataclass(frozen=True)
class AffineWeight(QuantizedWeight):
    """w = scale * code + offset, one scale and offset a group.

    A floating-point zero point z = -offset / scale says the same in as many bits, but grows without bound as a group's
    range shrinks beside its distance from zero, and cannot hold a group of equal weights at all; an offset can.

    Args:
        codes: Integers below 2^bits, uint8 [out, in].
        scales: Step of the grid, [out, groups]; 0 for a group with one level.
        offsets: What code 0 stands for, [out, groups].
        bits: Bits a code, 1 to 8.
        group_size: Columns a group, or -1 for whole rows; the last group of a row may be shorter.
    """

    codes: Annotated[Tensor, Codes("bits", "out", "in")]
    scales: Annotated[Tensor, Scales("out", "groups")]
    offsets: Annotated[Tensor, Scales("out", "groups", role="zero points")]
    bits: int
    group_size: int
    format: ClassVar[str] = "uniform-affine"

    def dequantize(self) -> Tensor:
        """Return scale * code + offset as float32 [out, in]."""
        length = self.codes.shape[1]
        values = self.codes.float().mul_(repeat_groups(self.scales.float(), self.group_size, length))
        return values.add_(repeat_groups(self.offsets.float(), self.group_size, length))

    @property
    def nominal_bits(self) -> float:
        """Bits a code."""
        return float(self.bits)
