"""Multiplying activations by row tiles on this machine's processor."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lowbit import RowTiles
from lowbit_cpu.instruction_sets import InstructionSet, available_instruction_sets
from lowbit_cpu.jit import CODES, CompiledCode
from lowbit_cpu.threads import THREADS

SERIAL_WORK = 1 << 18
"""Weights times activation rows below which waking threads costs more than it saves."""

BATCH_ROWS = 4
"""Rows of activations whose tables are in use together, at most."""

SINGLE_TABLE_FLOATS = 1 << 15
BATCH_TABLE_FLOATS = 1 << 14
"""Floats of tables that one thread works with at a time, so that they stay in its nearest caches."""


def product_code(tiles: RowTiles, instruction_set: InstructionSet) -> CompiledCode:
    """Return the machine code that multiplies by tiles of this shape."""
    from lowbit_cpu.product_ir import product_module
    from lowbit_cpu.tile_shape import TileShape

    shape = TileShape.of(tiles, instruction_set)
    return CODES.get(("product", shape), instruction_set, lambda: product_module(shape))


@cache
def default_instruction_set() -> InstructionSet:
    """Return the fastest instruction set of this machine."""
    return available_instruction_sets()[0]


def padded_activations(x: Tensor, tiles: RowTiles) -> Tensor:
    """Return float32 activations with whole words for each group.

    Args:
        x: [rows, columns], floating point.
        tiles: What they are to be multiplied by.

    Returns:
        float32 [rows, groups * group words * 32], contiguous.
    """
    x = x.float()
    width = tiles.group_words * tiles.word_bits
    missing = tiles.groups * tiles.group_size - tiles.columns
    if missing:
        x = torch.nn.functional.pad(x, (0, missing))
    if width != tiles.group_size:
        x = torch.nn.functional.pad(
            x.reshape(x.shape[0], tiles.groups, tiles.group_size), (0, width - tiles.group_size)
        )
    return x.reshape(x.shape[0], tiles.groups * width).contiguous()


def initial_result(x: Tensor, tiles: RowTiles, bias: Tensor | None) -> Tensor:
    """Return float32 [rows, row tiles * 16] with the bias in every row, or zeros.

    Args:
        x: float32 [rows, ...]; the result has its dtype and device, whatever the defaults are.
        tiles: What is multiplied by.
        bias: [out] or `None`.
    """
    rows = x.shape[0]
    width = tiles.words.shape[0] * tiles.tile_rows
    if bias is None:
        return x.new_zeros(rows, width)
    result = x.new_empty(rows, width)
    result[:, : tiles.rows] = bias
    if width > tiles.rows:
        result[:, tiles.rows :] = 0
    return result


def shares_of(work: int, units: int) -> int:
    """Return how many threads to use for `units` separable parts of some work."""
    return 1 if work < SERIAL_WORK else max(1, min(torch.get_num_threads(), units))


def lookup_product(
    x: Tensor, tiles: RowTiles, bias: Tensor | None, instruction_set: InstructionSet | None = None
) -> Tensor:
    """Return x @ W^T + bias by table look-ups.

    Args:
        x: [rows, columns], at least one row.
        tiles: W; its words must be contiguous.
        bias: [out] or `None`.
        instruction_set: One of this machine's; the fastest exact one if `None`.

    Returns:
        float32 [rows, out].
    """
    code = product_code(tiles, instruction_set or default_instruction_set())
    x = padded_activations(x, tiles)
    rows, width = x.shape
    result = initial_result(x, tiles, bias)
    tile_count = tiles.words.shape[0]
    group_tables = tiles.group_words * tiles.word_bits * 4
    if instruction_set is InstructionSet.AVX512_ROUNDED:
        group_tables //= 4
    budget = SINGLE_TABLE_FLOATS if rows == 1 else BATCH_TABLE_FLOATS // min(rows, BATCH_ROWS)
    block_groups = max(1, min(tiles.groups, budget // group_tables))
    stride = block_groups * group_tables + -(-2 * block_groups // 16) * 16  # tables, sums, scales
    shares = shares_of(tiles.rows * tiles.columns * rows, tile_count)
    share_stride = min(rows, BATCH_ROWS) * stride
    scratch = x.new_empty(shares * share_stride)
    THREADS.run(
        code,
        (
            tiles.words.data_ptr(),
            x.data_ptr(),
            result.data_ptr(),
            scratch.data_ptr(),
            rows,
            tiles.groups,
            tile_count,
            block_groups,
            width,
            result.shape[1],
            stride,
            share_stride,
        ),
        shares,
    )
    return result[:, : tiles.rows]
