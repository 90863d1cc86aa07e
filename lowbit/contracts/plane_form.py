"""`PlaneForm`: a quantized weight as sums of scaled bit planes, what kernels that never expand weights multiply by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BitPlanes:
    """`W[r, j] = c[j] * (sum over p of scales[p, r, g(j)] * planes[p][r, j] + offsets[r, g(j)])`.

    Args:
        planes: One to three bool tensors [out, columns].
        scales: Floating-point [planes, out, groups].
        offsets: Floating-point [out, groups], or `None` for zeros.
        group_size: Columns a group; the last group may be shorter.
        columns: Which column of the matrix each column stands for, int64 [columns], or -1 for none; `None` where the
            planes have the matrix's own columns.
        column_scales: c, float32 [columns], or `None` for ones.
    """

    planes: tuple[Tensor, ...]
    scales: Tensor
    offsets: Tensor | None
    group_size: int
    columns: Tensor | None = None
    column_scales: Tensor | None = None

    def dense(self, length: int) -> Tensor:
        """Return the matrix that this part stands for, float32 [out, length].

        Args:
            length: Columns of the whole matrix.
        """
        out, columns = self.planes[0].shape
        group = torch.arange(columns, device=self.scales.device) // self.group_size  # [columns]
        dense = torch.zeros(out, columns, dtype=torch.float32, device=self.scales.device)
        for plane, scale in zip(self.planes, self.scales.float(), strict=True):
            dense += scale[:, group] * plane
        if self.offsets is not None:
            dense += self.offsets.float()[:, group]
        if self.column_scales is not None:
            dense *= self.column_scales
        if self.columns is None:
            return dense
        used = self.columns >= 0
        result = torch.zeros(out, length, dtype=torch.float32, device=dense.device)
        return result.index_add_(1, self.columns[used], dense[:, used])


@dataclass(frozen=True)
class SparseCodes:
    """Single weights on a grid of their row, added to the planes: W[r, j] += scales[r] * (code - zero_points[r]).

    Args:
        row_starts: Where each row's entries begin, int32 [out + 1].
        columns: Column of each entry, int32 [entries]; ascending within a row.
        codes: uint8 [entries].
        scales: Floating-point [out].
        zero_points: Floating-point [out].
    """

    row_starts: Tensor
    columns: Tensor
    codes: Tensor
    scales: Tensor
    zero_points: Tensor

    def dense(self, length: int) -> Tensor:
        """Return the matrix with these entries and zeros elsewhere, float32 [out, length]."""
        counts = self.row_starts.diff().long()
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # [entries]
        values = self.scales.float()[rows] * (self.codes.float() - self.zero_points.float()[rows])
        result = torch.zeros(len(counts), length, dtype=torch.float32, device=values.device)
        return result.index_put_((rows, self.columns.long()), values, accumulate=True)


@dataclass(frozen=True)
class PlaneForm:
    """A whole quantized matrix: parts of bit planes, and at most one sparse part, that add up.

    Args:
        shape: Rows and columns of the matrix.
        parts: The dense parts.
        sparse: Single weights on top of them.
    """

    shape: tuple[int, int]
    parts: tuple[BitPlanes, ...]
    sparse: SparseCodes | None = None

    def dense(self) -> Tensor:
        """Return the sum of all parts, float32 [out, in]; equal to `dequantize()` up to rounding."""
        length = self.shape[1]
        parts: list[BitPlanes | SparseCodes] = [*self.parts]
        if self.sparse is not None:
            parts.append(self.sparse)
        device = parts[0].scales.device if parts else "cpu"
        total = torch.zeros(self.shape, dtype=torch.float32, device=device)
        for part in parts:
            total += part.dense(length)
        return total
