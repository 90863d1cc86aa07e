"""The affine format: k-bit codes with a step and an offset a group, both floating-point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from lowbit import BitPlanes, Codes, FormatSpec, PlaneForm, QuantizedWeight, Scales, group_lengths, repeat_groups
from lowbit_baselines.code_planes import MOST_BITS, bit_scales, code_planes


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

    @classmethod
    def has_plane_form(cls, spec: FormatSpec) -> bool:
        """Up to three bits."""
        return int(spec.parameters["bits"]) <= MOST_BITS

    def plane_form(self) -> PlaneForm | None:
        """Return the bits of the codes as planes; `None` for codes of more than three bits."""
        if self.bits > MOST_BITS:
            return None
        planes, scales = code_planes(self.codes, self.bits), bit_scales(self.scales, self.bits)
        columns = int(group_lengths(self.shape[1], self.group_size)[0])
        return PlaneForm(self.shape, (BitPlanes(planes, scales, self.offsets.float(), columns),))

    @property
    def nominal_bits(self) -> float:
        """Bits a code."""
        return float(self.bits)
