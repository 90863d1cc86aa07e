"""The ternary format: one of three digits a weight, one scale a group."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from lowbit import BitPlanes, Codes, PlaneForm, QuantizedWeight, Scales, group_lengths, repeat_groups
from torch import Tensor


@dataclass(frozen=True)
class TernaryWeight(QuantizedWeight):
    """w = scale * (digit - 1), so that a weight is minus the scale, zero, or the scale of its group.

    Args:
        digits: 0, 1 or 2, uint8 [out, in].
        scales: Not negative, [out, groups].
        group_size: Columns a group, or -1 for whole rows; the last group of a row may be shorter.
    """

    digits: Annotated[Tensor, Codes(2, "out", "in", role="digits")]
    scales: Annotated[Tensor, Scales("out", "groups")]
    group_size: int
    format: ClassVar[str] = "ternary"

    def dequantize(self) -> Tensor:
        """Return scale * (digit - 1) as float32 [out, in]."""
        scales = repeat_groups(self.scales.float(), self.group_size, self.digits.shape[1])  # [out, in]
        return scales * (self.digits.float() - 1)

    def plane_form(self) -> PlaneForm:
        """Return the positive weights as a plane with the scale, the negative ones as a plane with minus the scale."""
        columns = int(group_lengths(self.shape[1], self.group_size)[0])
        scales = torch.stack([self.scales, -self.scales])  # [2, out, groups]
        return PlaneForm(self.shape, (BitPlanes((self.digits == 2, self.digits == 0), scales, None, columns),))

    @property
    def nominal_bits(self) -> float:
        """Two, as Ternary Weight Networks count a digit, scales left out; the base-3 packer stores it in 1.6."""
        return 2.0
