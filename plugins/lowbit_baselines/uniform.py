"""The uniform-integer format: k-bit codes with a scale and a zero point a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lowbit import (
    BitPlanes,
    Codes,
    FormatSpec,
    Indices,
    PlaneForm,
    QuantizedWeight,
    Scales,
    group_lengths,
    repeat_groups,
)
from lowbit_baselines.code_planes import MOST_BITS, bit_scales, code_planes


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

    @classmethod
    def has_plane_form(cls, spec: FormatSpec) -> bool:
        """Up to three bits."""
        return int(spec.parameters["bits"]) <= MOST_BITS

    def plane_form(self) -> PlaneForm | None:
        """Return the bits of the codes as planes; `None` for codes of more than three bits."""
        if self.bits > MOST_BITS:
            return None
        columns = int(group_lengths(self.shape[1], self.group_size)[0])
        return PlaneForm(self.shape, (self._planes(self.codes, columns),))

    def _planes(self, codes: Tensor, group_size: int, columns: Tensor | None = None) -> BitPlanes:
        """Return codes in groups of neighbours, uint8 [out, columns], as planes."""
        offsets = -self.scales.float() * self.zero_points.float()  # [out, groups]
        return BitPlanes(
            code_planes(codes, self.bits), bit_scales(self.scales, self.bits), offsets, group_size, columns
        )

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

    def plane_form(self) -> PlaneForm | None:
        """Return the bits of the codes as planes whose columns are in the order of their groups."""
        if self.bits > MOST_BITS:
            return None
        columns, size = _by_group(self.group_index.long(), self.scales.shape[1])
        codes = torch.where(columns >= 0, self.codes[:, columns.clamp(min=0)], 0)  # [out, groups * size]
        return PlaneForm(self.shape, (self._planes(codes, size, columns),))


def _by_group(group_index: Tensor, groups: int) -> tuple[Tensor, int]:
    """Return the columns group after group, int64 [groups * size], and the size of the largest group.

    Smaller groups are filled up with -1, so that all begin at a multiple of the size.
    """
    counts = torch.bincount(group_index, minlength=groups)
    size = int(counts.max())
    order = group_index.argsort(stable=True)
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[group_index[order]]
    columns = torch.full((groups * size,), -1, device=order.device)
    columns[group_index[order] * size + rank] = order
    return columns, size
