"""`RowTiles`: bit planes and their scales, sixteen rows and one group of columns at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

TILE_ROWS = 16
WORD_BITS = 32


@dataclass(frozen=True)
class RowTiles:
    """Planes and scales of a matrix in tiles of sixteen rows and one group of columns, each contiguous.

    A tile holds, one behind the other: for each plane and each 32-bit word of the group, the words of the sixteen rows
    (column j of the group is bit j % 32 of word j // 32); then for each plane the sixteen scales, and the sixteen
    offsets if there are any. Rows beyond the matrix and columns beyond the group are zeros.

    Args:
        words: int32 [row tiles, groups, tile words].
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        group_size: Columns a group; the last group of a row may be shorter.
        planes: Number of planes.
        has_offsets: Whether an offset follows the scales.
        scale_dtype: float16, bfloat16 or float32.
    """

    words: Tensor
    rows: int
    columns: int
    group_size: int
    planes: int
    has_offsets: bool
    scale_dtype: torch.dtype
    tile_rows: ClassVar[int] = TILE_ROWS
    word_bits: ClassVar[int] = WORD_BITS

    @property
    def group_words(self) -> int:
        """32-bit words that a row of one plane takes in a group."""
        return -(-self.group_size // WORD_BITS)

    @property
    def groups(self) -> int:
        """Groups a row."""
        return -(-self.columns // self.group_size)
