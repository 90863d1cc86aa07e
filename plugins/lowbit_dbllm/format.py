"""The dual-binary format: two {0, 1} bit planes and two scales a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lowbit import BitPlanes, Bits, PlaneForm, QuantizedWeight, Scales, group_lengths, repeat_groups


@dataclass(frozen=True)
class DualBinaryWeight(QuantizedWeight):
    """w = alpha1 * b1 + alpha2 * b2 with b1, b2 in {0, 1} and one pair of scales a group (DB-LLM, arXiv 2402.11960).

    Args:
        plane1: b1, bool [out, in].
        plane2: b2, bool [out, in].
        alpha1: First scale, [out, groups].
        alpha2: Second scale, [out, groups]; its sign is opposite to that of `alpha1`.
        group_size: Columns a group, or -1 for whole rows; the last group of a row may be shorter.
    """

    plane1: Annotated[Tensor, Bits("out", "in")]
    plane2: Annotated[Tensor, Bits("out", "in")]
    alpha1: Annotated[Tensor, Scales("out", "groups")]
    alpha2: Annotated[Tensor, Scales("out", "groups")]
    group_size: int
    format: ClassVar[str] = "dual-binary"

    def dequantize(self) -> Tensor:
        """Return alpha1 * b1 + alpha2 * b2 as float32 [out, in]."""
        length = self.plane1.shape[1]
        first = repeat_groups(self.alpha1.float(), self.group_size, length)
        second = repeat_groups(self.alpha2.float(), self.group_size, length)
        return first * self.plane1 + second * self.plane2

    def plane_form(self) -> PlaneForm:
        """Return both planes with their scales as stored."""
        columns = int(group_lengths(self.shape[1], self.group_size)[0])
        dtype = torch.promote_types(self.alpha1.dtype, self.alpha2.dtype)
        scales = torch.stack([self.alpha1.to(dtype), self.alpha2.to(dtype)])  # [2, out, groups]
        return PlaneForm(self.shape, (BitPlanes((self.plane1, self.plane2), scales, None, columns),))

    @property
    def nominal_bits(self) -> float:
        """Two: the paper counts the planes and leaves out the scales."""
        return 2.0
