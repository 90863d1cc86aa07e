"""Multiplying activations by single weights on a grid of their row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lowbit import SparseCodes
from lowbit_cpu.instruction_sets import InstructionSet
from lowbit_cpu.jit import CODES, CompiledCode
from lowbit_cpu.row_tiles_product import default_instruction_set, shares_of
from lowbit_cpu.threads import THREADS

BATCH = 16
"""Rows of activations that one vector holds."""

DENSE_ROWS = 256
"""Rows of the matrix that torch expands at a time."""


def sparse_code(batched: bool, instruction_set: InstructionSet) -> CompiledCode:
    """Return the machine code for one row of activations, or for batches of sixteen."""
    from lowbit_cpu.sparse_ir import sparse_module

    return CODES.get(("sparse", batched, instruction_set), instruction_set, lambda: sparse_module(batched))


def sparse_product(x: Tensor, sparse: SparseCodes, instruction_set: InstructionSet | None = None) -> Tensor:
    """Return x @ S^T without expanding S.

    Args:
        x: [rows, columns], at least one row.
        sparse: S.
        instruction_set: One of this machine's; the fastest if `None`.

    Returns:
        float32 [rows, out].
    """
    rows = x.shape[0]
    out = len(sparse.scales)
    batches = -(-rows // BATCH) if rows > 1 else 1
    code = sparse_code(rows > 1, instruction_set or default_instruction_set())
    x = x.float()
    if rows > 1:
        x = torch.nn.functional.pad(x.T, (0, batches * BATCH - rows))  # [columns, batches * 16]
    x = x.contiguous()
    width = batches * BATCH if rows > 1 else 1
    result = torch.empty(out, width, dtype=torch.float32, device="cpu")
    kept = [
        sparse.row_starts.int().contiguous(),
        sparse.columns.int().contiguous(),
        sparse.codes.contiguous(),
        sparse.scales.float().contiguous(),
        sparse.zero_points.float().contiguous(),
        x,
        result,
    ]
    shares = shares_of(len(sparse.codes) * width, out, torch.get_num_threads())
    THREADS.run(code, (*(tensor.data_ptr() for tensor in kept), out, width, batches), shares)
    return result.T[:rows]


def dense_pieces(sparse: SparseCodes, length: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows at a time, and these rows of the matrix as float32 [rows, length]."""
    for start in range(0, len(sparse.scales), DENSE_ROWS):
        rows = slice(start, min(start + DENSE_ROWS, len(sparse.scales)))
        starts = sparse.row_starts[rows.start : rows.stop + 1]
        entries = slice(int(starts[0]), int(starts[-1]))
        piece = SparseCodes(
            starts - starts[0],
            sparse.columns[entries],
            sparse.codes[entries],
            sparse.scales[rows],
            sparse.zero_points[rows],
        )
        yield rows, piece.dense(length)


def transposed_sparse_product(gradient: Tensor, sparse: SparseCodes, length: int) -> Tensor:
    """Return gradient @ S, some rows of S at a time.

    Args:
        gradient: [rows, out].
        sparse: S.
        length: Columns of S.

    Returns:
        float32 [rows, length].
    """
    total = torch.zeros(gradient.shape[0], length, dtype=torch.float32, device=gradient.device)
    for rows, piece in dense_pieces(sparse, length):
        total.addmm_(gradient[:, rows].float(), piece)
    return total


def reference_sparse_product(x: Tensor, sparse: SparseCodes) -> Tensor:
    """Return x @ S^T by torch alone, float32 [rows, out]."""
    result = torch.empty(x.shape[0], len(sparse.scales), dtype=torch.float32, device=x.device)
    for rows, piece in dense_pieces(sparse, x.shape[1]):
        result[:, rows] = x.float() @ piece.T
    return result
