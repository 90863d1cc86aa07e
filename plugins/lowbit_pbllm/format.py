"""The partial-binary formats: one bit for most weights, codes of more bits for the salient ones."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lowbit import (
    BitPlanes,
    Bits,
    Codes,
    PlaneForm,
    QuantizedWeight,
    Scales,
    SparseCodes,
    group_lengths,
    repeat_groups,
    row_chunks,
)
from lowbit_pbllm.gaps import decode_gaps


def binary_levels(signs: Tensor, means: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """Return mean + scale where the sign is set and mean - scale elsewhere, float32 [out, in].

    Args:
        signs: bool [out, in].
        means: float32 [out, groups].
        scales: float32 [out, groups].
        group_size: Columns a group, or -1 for whole rows.
    """
    length = signs.shape[1]
    upper = repeat_groups(means + scales, group_size, length)
    lower = repeat_groups(means - scales, group_size, length)
    return torch.where(signs, upper, lower)


@dataclass(frozen=True)
class PartialBinary(QuantizedWeight):
    """w = mean + scale * sign, or for a salient weight: w = salient scale * (code - zero point).

    What the two formats share: everything but how the salient positions are stored. The sign plane holds the top bit
    of a salient weight's code, since such a weight has no sign to store; so its shape is that of the matrix, and no bit
    of it is unused.

    Args:
        signs: bool [out, in]: whether mean + scale is taken and not mean - scale; the top bit of a salient code.
        codes: The lower bits of the salient codes in row-major order, uint8 [salient].
        scales: Half the distance of a group's two binary levels, [out, groups].
        means: Their centre, [out, groups].
        salient_scales: Step of the grid of salient weights, [out].
        salient_zero_points: Code that stands for 0, uint8 [out].
        group_size: Columns that share a mean and a scale, or -1 for whole rows; the last group may be shorter.
        high_bits: Bits of a salient weight's code, 2 to 8.
        stored_bits: Those of them that are in `codes`: one fewer.
    """

    signs: Annotated[Tensor, Bits("out", "in")]
    codes: Annotated[Tensor, Codes("stored_bits", "salient")]
    scales: Annotated[Tensor, Scales("out", "groups")]
    means: Annotated[Tensor, Scales("out", "groups")]
    salient_scales: Annotated[Tensor, Scales("out")]
    salient_zero_points: Annotated[Tensor, Codes("high_bits", "out", role="zero points")]
    group_size: int
    high_bits: int
    stored_bits: int

    @abstractmethod
    def salient(self) -> Tensor:
        """Return which weights are salient, bool [out, in]."""

    @property
    @abstractmethod
    def mask_bits(self) -> float:
        """Bits a weight that the positions of salient weights take, as packed."""

    def dequantize(self) -> Tensor:
        """Return the matrix as float32 [out, in]."""
        salient = self.salient()
        dense = torch.empty(salient.shape, device=salient.device)
        taken = 0
        chunks = row_chunks(
            salient, self.signs, self.means, self.scales, self.salient_scales, self.salient_zero_points, dense
        )
        for mask, signs, means, scales, salient_scales, zero_points, rows in chunks:
            count = int(mask.sum())
            levels = signs * 2.0**self.stored_bits
            levels[mask] += self.codes[taken : taken + count].float()
            taken += count
            high = salient_scales.float().unsqueeze(1) * (levels - zero_points.float().unsqueeze(1))
            low = binary_levels(signs, means.float(), scales.float(), self.group_size)
            torch.where(mask, high, low, out=rows)
        return dense

    def plane_form(self) -> PlaneForm:
        """Return the binary weights as two planes, which cancel at salient weights, and the salient ones singly."""
        salient = self.salient()
        lower = self.means.float() - self.scales.float()  # [out, groups]
        scales = torch.stack([2 * self.scales.float(), -lower])
        columns = int(group_lengths(self.shape[1], self.group_size)[0])
        binary = BitPlanes((self.signs & ~salient, salient), scales, lower, columns)
        return PlaneForm(self.shape, (binary,), self._salient_codes(salient))

    def _salient_codes(self, salient: Tensor) -> SparseCodes:
        starts = torch.nn.functional.pad(salient.sum(1).cumsum(0), (1, 0))  # [out + 1]
        top = self.signs[salient].to(torch.uint8) << self.stored_bits
        return SparseCodes(
            row_starts=starts.to(torch.int32),
            columns=salient.nonzero()[:, 1].to(torch.int32),
            codes=top | self.codes,
            scales=self.salient_scales,
            zero_points=self.salient_zero_points.float(),
        )

    @property
    def salient_share(self) -> float:
        """Share of the weights that are salient."""
        return self.codes.numel() / self.signs.numel()

    @property
    def nominal_bits(self) -> float:
        """Bits a weight without mask, scales and means (PB-LLM, equation 3): 1.7 for a tenth at 8 bits."""
        return 1 - self.salient_share + self.salient_share * self.high_bits


@dataclass(frozen=True)
class PartialBinaryWeight(PartialBinary):
    """A partially binarized matrix with its salient positions as a bitmap (PB-LLM, arXiv 2310.00034).

    Args:
        salient_mask: bool [out, in].
    """

    salient_mask: Annotated[Tensor, Bits("out", "in", role="masks")]
    format: ClassVar[str] = "partial-binary"

    def salient(self) -> Tensor:
        """Return the bitmap."""
        return self.salient_mask

    @property
    def mask_bits(self) -> float:
        """One, and what fills the last byte of a row."""
        columns = self.salient_mask.shape[1]
        return 8 * -(-columns // 8) / columns


@dataclass(frozen=True)
class IndexedPartialBinaryWeight(PartialBinary):
    """A partially binarized matrix with its salient positions as gaps in row-major order.

    Args:
        gaps: uint8 [entries]: a code g skips g positions and marks the next, but the largest code, 2^gap_bits - 1,
            skips as many positions and marks none.
        gap_bits: Bits of a gap's code, 1 to 8.
    """

    gaps: Annotated[Tensor, Codes("gap_bits", "entries", role="masks")]
    gap_bits: int
    format: ClassVar[str] = "partial-binary-indexed"

    def salient(self) -> Tensor:
        """Return the positions that the gaps lead to."""
        return decode_gaps(self.gaps, self.gap_bits, (self.signs.shape[0], self.signs.shape[1]))

    @property
    def mask_bits(self) -> float:
        """Bits of the gaps by the number of weights."""
        return 8 * -(-self.gaps.numel() * self.gap_bits // 8) / self.signs.numel()
