"""Error compensation over blocks of columns (GPTQ, arXiv 2210.17323; OBS), for any way of quantizing a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.quantization.inverse_factor import InverseFactor

BlockError = Literal["diagonal", "triangular"]


@dataclass(frozen=True)
class ColumnBlock:
    """A block of columns that is to be quantized, compensated for the errors of all blocks before it.

    Args:
        start: First column, in the order of the inverse factor.
        stop: Column after the last.
        remaining: The weights from this block to the end, float32 [out, in - start]; not to be changed.
        factor: The block's part of U, float32 [columns, columns].
    """

    start: int
    stop: int
    remaining: Tensor
    factor: Tensor

    @property
    def weight(self) -> Tensor:
        """The block's own weights, float32 [out, columns]; not to be changed."""
        return self.remaining[:, : self.stop - self.start]


RoundColumn = Callable[[int, Tensor], Tensor]
"""Quantizes one column: (position within the block, weights [out]) to dequantized weights [out]."""


def column_blocks(columns: int, block_size: int, cuts: Iterable[int] = ()) -> list[tuple[int, int]]:
    """Return the (start, stop) of consecutive blocks.

    Args:
        columns: Number of columns.
        block_size: Most columns a block.
        cuts: Columns at which a block must start as well, such as the starts of groups.
    """
    starts = sorted({*range(0, columns, block_size), *(cut for cut in cuts if 0 < cut < columns)})
    return list(zip(starts, [*starts[1:], columns], strict=True))


def working_copy(weight: Tensor, factor: InverseFactor) -> Tensor:
    """Return a copy for `compensate_*` to work on: transposed, in the factor's order, dead columns zero.

    Args:
        weight: float32 [out, in].
        factor: The layer's inverse factor.

    Returns:
        Contiguous float32 [in, out]: a column of the weight is a row here.
    """
    columns = weight.T if factor.order is None else weight.T[factor.order]
    dead = factor.dead if factor.order is None else factor.dead[factor.order]
    copied = columns.clone(memory_format=torch.contiguous_format)
    copied[dead] = 0
    return copied


def compensate_blocks(
    columns: Tensor,
    factor: InverseFactor,
    bounds: Sequence[tuple[int, int]],
    quantize_block: Callable[[ColumnBlock], Tensor],
    block_error: BlockError = "diagonal",
) -> None:
    """Quantize block by block; each block's error is compensated in the later blocks only.

    With Q the quantized block and E = W_block - Q, the later columns receive -E inv(U_bb) U_b,rest, the exact optimum
    for the given Q ("triangular"), or -E inv(diag U_bb) U_b,rest, which ignores that the errors of a block act
    together ("diagonal").

    Args:
        columns: From `working_copy`; changed in place.
        factor: The layer's inverse factor.
        bounds: From `column_blocks`.
        quantize_block: Returns a block's dequantized weights, float32 [out, columns].
        block_error: Which of the two.
    """
    for start, stop in bounds:
        block = _block(columns, factor, start, stop)
        error = (block.weight - quantize_block(block)).T  # [columns, out]
        if block_error == "triangular":
            error = torch.linalg.solve_triangular(block.factor.T, error, upper=False)
        else:
            error = error / block.factor.diagonal().unsqueeze(1)
        _propagate(columns, factor, start, stop, error)


def compensate_columns(
    columns: Tensor,
    factor: InverseFactor,
    bounds: Sequence[tuple[int, int]],
    start_block: Callable[[ColumnBlock], RoundColumn],
) -> None:
    """Quantize column by column; each column's error is compensated in all later ones, inside its block and beyond.

    Inside a block, a column collects the errors before it in one product; the later blocks receive those of the
    whole block at once (the lazy batches of GPTQ).

    Args:
        columns: From `working_copy`; changed in place.
        factor: The layer's inverse factor.
        bounds: From `column_blocks`.
        start_block: Called with each block before its first column is quantized; returns what quantizes its columns.
    """
    for start, stop in bounds:
        round_column = start_block(_block(columns, factor, start, stop))
        upper = factor.upper[start:stop, start:stop]
        diagonal = upper.diagonal().tolist()
        errors = torch.empty(stop - start, columns.shape[1], device=columns.device)  # [columns, out]
        for position, column in enumerate(columns[start:stop]):
            if position:
                column.addmv_(errors[:position].T, upper[:position, position], alpha=-1)
            torch.sub(column, round_column(position, column), out=errors[position]).div_(diagonal[position])
        _propagate(columns, factor, start, stop, errors)


def _block(columns: Tensor, factor: InverseFactor, start: int, stop: int) -> ColumnBlock:
    return ColumnBlock(start, stop, columns[start:].T, factor.upper[start:stop, start:stop])


def _propagate(columns: Tensor, factor: InverseFactor, start: int, stop: int, error: Tensor) -> None:
    """Subtract U_b,rest^T error from the columns after a block; error [columns, out] is scaled already."""
    if stop < columns.shape[0]:
        columns[stop:].addmm_(factor.upper[start:stop, stop:].T, error, alpha=-1)
