"""Row tiles, the layout that kernels read: from planes and scales, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.contracts.row_tiles import TILE_ROWS, WORD_BITS, RowTiles
from lowbit.packing.bits import pack_bits, unpack_bits


def row_tiles_shape(
    rows: int, columns: int, group_size: int, planes: int, has_offsets: bool, scale_dtype: torch.dtype
) -> tuple[int, int, int]:
    """Return the shape of `RowTiles.words`: row tiles, groups, 32-bit words a tile."""
    scale_words = TILE_ROWS * scale_dtype.itemsize // 4
    tile_words = TILE_ROWS * planes * -(-group_size // WORD_BITS) + (planes + has_offsets) * scale_words
    return -(-rows // TILE_ROWS), -(-columns // group_size), tile_words


def to_row_tiles(
    planes: tuple[Tensor, ...], scales: Tensor, offsets: Tensor | None, group_size: int, scale_dtype: torch.dtype
) -> RowTiles:
    """Lay planes and scales out in row tiles.

    Args:
        planes: bool [rows, columns] each.
        scales: [planes, rows, groups]; must be exact in `scale_dtype`.
        offsets: [rows, groups] or `None`.
        group_size: Columns a group.
        scale_dtype: How scales and offsets are stored.

    Raises:
        ValueError: Scales or offsets have another shape than planes and groups say.
    """
    rows, columns = planes[0].shape
    shape = row_tiles_shape(rows, columns, group_size, len(planes), offsets is not None, scale_dtype)
    tiles, groups, _ = shape
    if tuple(scales.shape) != (len(planes), rows, groups):
        raise ValueError(f"expected scales of shape {(len(planes), rows, groups)}, got {tuple(scales.shape)}")
    if offsets is not None and tuple(offsets.shape) != (rows, groups):
        raise ValueError(f"expected offsets of shape {(rows, groups)}, got {tuple(offsets.shape)}")
    bits = torch.stack([_plane_words(plane, group_size) for plane in planes])  # [planes, tiles * 16, groups, words]
    bits = bits.reshape(len(planes), tiles, TILE_ROWS, groups, -1).permute(1, 3, 0, 4, 2)  # rows of a tile innermost
    numbers = scales if offsets is None else torch.cat([scales, offsets.unsqueeze(0)])  # [numbers, rows, groups]
    numbers = torch.nn.functional.pad(numbers.to(scale_dtype), (0, 0, 0, tiles * TILE_ROWS - rows))
    numbers = numbers.reshape(-1, tiles, TILE_ROWS, groups).permute(1, 3, 0, 2).reshape(-1)
    parts = [bits.reshape(tiles, groups, -1), numbers.view(torch.int32).reshape(tiles, groups, -1)]
    return RowTiles(torch.cat(parts, 2), rows, columns, group_size, len(planes), offsets is not None, scale_dtype)


def from_row_tiles(tiles: RowTiles) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
    """Undo `to_row_tiles`, bit-exactly.

    Returns:
        The planes, bool [rows, columns] each; the scales [planes, rows, groups]; the offsets [rows, groups] or `None`.
    """
    bits, numbers = split_row_tiles(tiles)
    count, groups = tiles.words.shape[:2]
    flat_bytes = bits.permute(2, 0, 4, 1, 3).reshape(-1).view(torch.uint8)  # words of a row behind one another
    rows = flat_bytes.reshape(tiles.planes, count * TILE_ROWS, groups, -1)  # [planes, rows, groups, bytes]
    wide = unpack_bits(rows, tiles.group_size)[:, : tiles.rows]  # [planes, rows, groups, columns]
    flat = wide.reshape(tiles.planes, tiles.rows, -1)[..., : tiles.columns].bool()
    numbers = numbers.permute(2, 0, 3, 1).reshape(-1, count * TILE_ROWS, groups)[:, : tiles.rows].contiguous()
    return tuple(flat), numbers[: tiles.planes], numbers[tiles.planes] if tiles.has_offsets else None


def split_row_tiles(tiles: RowTiles) -> tuple[Tensor, Tensor]:
    """Return views of the plane words [row tiles, groups, planes, group words, 16] and scales [..., numbers, 16]."""
    count, groups, _ = tiles.words.shape
    size = tiles.planes * tiles.group_words * TILE_ROWS
    bits = tiles.words[..., :size].unflatten(2, (tiles.planes, tiles.group_words, TILE_ROWS))
    numbers = tiles.words[..., size:].reshape(-1).view(tiles.scale_dtype)
    return bits, numbers.reshape(count, groups, tiles.planes + tiles.has_offsets, TILE_ROWS)


def _plane_words(plane: Tensor, group_size: int) -> Tensor:
    """Return int32 [rows up to a whole tile, groups, words]."""
    rows, columns = plane.shape
    groups, words = -(-columns // group_size), -(-group_size // WORD_BITS)
    plane = torch.nn.functional.pad(plane, (0, groups * group_size - columns, 0, -rows % TILE_ROWS))
    plane = plane.reshape(-1, groups, group_size)
    plane = torch.nn.functional.pad(plane, (0, words * WORD_BITS - group_size))
    return pack_bits(plane).view(torch.int32)
