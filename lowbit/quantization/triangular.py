"""Operations on large square matrices that need little memory beside the matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def flip_in_place(matrix: Tensor, rows: int = 256) -> Tensor:
    """Reverse the order of rows and of columns of a square matrix [n, n], using memory for `rows` rows."""
    size = matrix.shape[0]
    for start in range(0, size // 2, rows):
        stop = min(start + rows, size // 2)
        upper, lower = matrix[start:stop], matrix[size - stop : size - start]
        kept = upper.flip(0, 1)
        upper.copy_(lower.flip(0, 1))
        lower.copy_(kept)
    if size % 2:
        middle = matrix[size // 2]
        middle.copy_(middle.flip(0))
    return matrix


def invert_lower_in_place(matrix: Tensor, leaf: int = 256) -> Tensor:
    """Replace a lower triangular matrix [n, n] by its inverse, using memory for n^2 / 4 numbers.

    Args:
        matrix: Lower triangular, zeros above the diagonal, which has no zero.
        leaf: Matrices of up to this size are inverted directly.
    """
    size = matrix.shape[0]
    if size <= leaf:
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        return matrix.copy_(torch.linalg.solve_triangular(matrix, identity, upper=False))
    half = size // 2
    first, coupling, second = matrix[:half, :half], matrix[half:, :half], matrix[half:, half:]
    invert_lower_in_place(first, leaf)
    invert_lower_in_place(second, leaf)
    product = second @ coupling  # [size - half, half]
    torch.mm(product, first, out=coupling)
    coupling.neg_()
    return matrix
