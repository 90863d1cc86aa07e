"""The uniform-integer format: k-bit codes with a scale and a zero point a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from lowbit import Codes, Indices, QuantizedWeight, Scales, repeat_groups


@dataclass(frozen=True)
class UniformWeight(QuantizedWeight):
    """w = scale * (code - zero point), one scale and zero point a group.

    Args:
        codes: Integers below 2^bits, uint8 [out, in].
        scales: [out, groups].
        zero_points: Integers below 2^bits, uint8 [out, groups].
        bits: Bits a code, 1 to 8.
        group_size: Columns a group, or -1 for whole rows; the last group of a row may be shorter.
    """

    codes: Annotated[Tensor, Codes("bits", "out", "in")]
    scales: Annotated[Tensor, Scales("out", "groups")]
    zero_points: Annotated[Tensor, Codes("bits", "out", "groups", role="zero points")]
    bits: int
    group_size: int
    format: ClassVar[str] = "uniform"

    def dequantize(self) -> Tensor:
        """Return scale * (code - zero point) as float32 [out, in]."""
        length = self.codes.shape[1]
        scales = repeat_groups(self.scales.float(), self.group_size, length)
        zero_points = repeat_groups(self.zero_points.float(), self.group_size, length)
        return scales * (self.codes.float() - zero_points)

    @property
    def nominal_bits(self) -> float:
        """Bits a code."""
        return float(self.bits)


@dataclass(frozen=True)
class OrderedUniformWeight(UniformWeight):
    """The uniform format with groups of columns that are not neighbours, as activation order makes them.

    Args:
        group_index: The group of each column, int32 [in].
    """

    group_index: Annotated[Tensor, Indices("in")]
    format: ClassVar[str] = "uniform-ordered"

    def dequantize(self) -> Tensor:
        """Return scale * (code - zero point) as float32 [out, in]."""
        groups = self.group_index.long()
        return self.scales.float()[:, groups] * (self.codes.float() - self.zero_points.float()[:, groups])
