"""Multiplying activations by row tiles on this machine's processor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from lowbit import RowTiles, row_tiles_shape
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
        x = x.reshape(x.shape[0], tiles.groups * width)
    return x.contiguous()


def initial_result(x: Tensor, rows: int, width: int, bias: Tensor | None) -> Tensor:
    """Return float32 [activation rows, width] with the bias in every row, and zeros where there is none.

    Args:
        x: float32 [activation rows, ...]; the result has its dtype and device, whatever the defaults are.
        rows: Rows of the matrix, at most `width`.
        width: Rows of its tiles.
        bias: [rows] or `None`.
    """
    if bias is None:
        return x.new_zeros(x.shape[0], width)
    result = x.new_empty(x.shape[0], width)
    result[:, :rows] = bias
    if width > rows:
        result[:, rows:] = 0
    return result


def shares_of(work: int, units: int, threads: int) -> int:
    """Return how many of `threads` to use for `units` separable parts of some work."""
    return 1 if work < SERIAL_WORK else max(1, min(threads, units))


@dataclass(frozen=True)
class LookupPlan:
    """What a product's sizes decide, so that a call decides nothing.

    Args:
        code: Machine code.
        width: Numbers of a row of activations, padding included.
        result_width: Numbers of a row of the result, padding included.
        scratch: Floats of tables of all threads.
        shares: Threads.
        sizes: Arguments of the code behind the addresses.
    """

    code: CompiledCode
    width: int
    result_width: int
    scratch: int
    shares: int
    sizes: tuple[int, ...]


@lru_cache(maxsize=4096)
def lookup_plan(
    activation_rows: int,
    threads: int,
    instruction_set: InstructionSet,
    rows: int,
    columns: int,
    group_size: int,
    planes: int,
    has_offsets: bool,
    scale_dtype: torch.dtype,
) -> LookupPlan:
    """Return how to multiply so many rows of activations by row tiles of these sizes, and compile what it takes."""
    from lowbit_cpu.product_ir import product_module
    from lowbit_cpu.tile_shape import TileShape

    tile_count, groups, _ = row_tiles_shape(rows, columns, group_size, planes, has_offsets, scale_dtype)
    group_words = -(-group_size // RowTiles.word_bits)
    shape = TileShape(planes, has_offsets, scale_dtype, group_words, instruction_set)
    code = CODES.get(("product", shape), instruction_set, lambda: product_module(shape))
    together = min(activation_rows, BATCH_ROWS)
    budget = SINGLE_TABLE_FLOATS if together == 1 else BATCH_TABLE_FLOATS // together
    block_groups = max(1, min(groups, budget // shape.group_tables))
    stride = block_groups * shape.group_tables + -(-2 * block_groups // 16) * 16  # tables, sums, scales
    shares = shares_of(rows * columns * activation_rows, tile_count, threads)
    width = groups * group_words * RowTiles.word_bits
    result_width = tile_count * RowTiles.tile_rows
    share_stride = together * stride
    sizes = (activation_rows, groups, tile_count, block_groups, width, result_width, stride, share_stride)
    return LookupPlan(code, width, result_width, shares * share_stride, shares, sizes)


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
    plan = lookup_plan(
        x.shape[0],
        torch.get_num_threads(),
        instruction_set or default_instruction_set(),
        tiles.rows,
        tiles.columns,
        tiles.group_size,
        tiles.planes,
        tiles.has_offsets,
        tiles.scale_dtype,
    )
    x = x.float().contiguous() if plan.width == tiles.columns else padded_activations(x, tiles)
    result = initial_result(x, tiles.rows, plan.result_width, bias)
    scratch = x.new_empty(plan.scratch)
    addresses = (tiles.words.data_ptr(), x.data_ptr(), result.data_ptr(), scratch.data_ptr())
    THREADS.run(plan.code, (*addresses, *plan.sizes), plan.shares)
    return result if plan.result_width == tiles.rows else result[:, : tiles.rows]
