"""Products that expand some hundred rows at a time: for many rows of activations, and for gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lowbit import RowTiles, from_row_tiles
from lowbit_cpu.instruction_sets import InstructionSet
from lowbit_cpu.jit import CODES, CompiledCode
from lowbit_cpu.row_tiles_product import default_instruction_set, padded_activations, shares_of
from lowbit_cpu.threads import THREADS

PIECE_TILES = 16
"""Row tiles that are expanded at a time."""


EXPANSION_ROWS = {InstructionSet.AVX2: 32, InstructionSet.PORTABLE: 3}
"""Rows of activations from which expanding is faster than looking up; with AVX-512 it was not, up to 512 rows."""


def expansion_pays(rows: int, instruction_set: InstructionSet) -> bool:
    """Say whether to expand the weight for so many rows of activations."""
    return instruction_set in EXPANSION_ROWS and rows >= EXPANSION_ROWS[instruction_set]


def expansion_code(tiles: RowTiles, instruction_set: InstructionSet) -> CompiledCode:
    """Return the machine code that expands tiles of this shape."""
    from lowbit_cpu.expansion_ir import expansion_module
    from lowbit_cpu.tile_shape import TileShape

    shape = TileShape.of(tiles, instruction_set)
    return CODES.get(("expansion", shape), instruction_set, lambda: expansion_module(shape))


def expanded_pieces(tiles: RowTiles, instruction_set: InstructionSet | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows at a time, and W^T for them: float32 [groups * group words * 32, rows], overwritten by the next.

    Columns beyond a group hold its offsets, for activations that are zero there.
    """
    code = expansion_code(tiles, instruction_set or default_instruction_set())
    height = tiles.groups * tiles.group_words * tiles.word_bits
    count = tiles.words.shape[0]
    piece_tiles = min(PIECE_TILES, count)
    scratch = torch.empty(height, piece_tiles * tiles.tile_rows, dtype=torch.float32, device="cpu")
    for start in range(0, count, piece_tiles):
        used = min(piece_tiles, count - start)
        shares = shares_of(height * used * tiles.tile_rows, tiles.groups * used, torch.get_num_threads())
        addresses = (tiles.words.data_ptr(), scratch.data_ptr())
        THREADS.run(code, (*addresses, tiles.groups, start, used, scratch.shape[1]), shares)
        rows = slice(start * tiles.tile_rows, min((start + used) * tiles.tile_rows, tiles.rows))
        yield rows, scratch[:, : rows.stop - rows.start]


def expanded_product(
    x: Tensor, tiles: RowTiles, bias: Tensor | None, instruction_set: InstructionSet | None = None
) -> Tensor:
    """Return x @ W^T + bias, expanding some rows of W at a time.

    Args:
        x: [rows, columns].
        tiles: W; its words must be contiguous.
        bias: [out] or `None`.
        instruction_set: One of this machine's; the fastest if `None`.

    Returns:
        float32 [rows, out].
    """
    x = padded_activations(x, tiles)
    result = torch.empty(x.shape[0], tiles.rows, dtype=torch.float32, device="cpu")
    for rows, piece in expanded_pieces(tiles, instruction_set):
        torch.mm(x, piece, out=result[:, rows])
    return result if bias is None else result.add_(bias.float())


def transposed_product(gradient: Tensor, tiles: RowTiles, instruction_set: InstructionSet | None = None) -> Tensor:
    """Return gradient @ W.

    Args:
        gradient: [rows, out].
        tiles: W; its words must be contiguous.
        instruction_set: One of this machine's; the fastest if `None`.

    Returns:
        float32 [rows, columns].
    """
    width = tiles.group_words * tiles.word_bits
    total = torch.zeros(gradient.shape[0], tiles.groups * width, dtype=torch.float32, device="cpu")
    gradient = gradient.float()
    for rows, piece in expanded_pieces(tiles, instruction_set):
        total.addmm_(gradient[:, rows], piece.T)
    grouped = total.reshape(total.shape[0], tiles.groups, width)[..., : tiles.group_size]
    return grouped.reshape(total.shape[0], tiles.groups * tiles.group_size)[:, : tiles.columns]


def dense_weight(tiles: RowTiles) -> Tensor:
    """Return W by torch alone, float32 [out, columns]."""
    planes, scales, offsets = from_row_tiles(tiles)
    group = torch.arange(tiles.columns, device=scales.device) // tiles.group_size  # [columns]
    dense = torch.zeros(tiles.rows, tiles.columns, dtype=torch.float32, device=scales.device)
    for plane, scale in zip(planes, scales.float(), strict=True):
        dense += scale[:, group] * plane
    return dense if offsets is None else dense + offsets.float()[:, group]
