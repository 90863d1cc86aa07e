"""What the operators require of their arguments, since compiled code reads memory by what it is told."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lowbit import SparseCodes, row_tiles_shape

SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def words_shape(
    rows: int, columns: int, group_size: int, planes: int, has_offsets: bool, scale_dtype: torch.dtype
) -> tuple[int, int, int]:
    """Return the shape that the words of row tiles must have.

    Raises:
        ValueError: A size is not positive, or scales of this dtype are in no tile.
    """
    if rows < 1 or columns < 1 or group_size < 1 or planes < 1:
        raise ValueError(
            "expected rows, columns, group_size and planes of at least 1, "
            f"got {rows}, {columns}, {group_size} and {planes}"
        )
    if scale_dtype not in SCALE_DTYPES:
        raise ValueError(f"expected scales of float32, bfloat16 or float16, got {scale_dtype}")
    return row_tiles_shape(rows, columns, group_size, planes, has_offsets, scale_dtype)


known_words_shape = lru_cache(maxsize=4096)(words_shape)
"""The same for plain integers, remembered; tracing has symbols, which cannot be remembered."""


def check_row_tiles_arguments(x: Tensor, width: int, words: Tensor, expected: tuple[int, int, int]) -> None:
    """Require that the product with row tiles reads nothing but its arguments.

    Args:
        x: What is multiplied.
        width: Its last dimension.
        words: The tiles.
        expected: Their shape.

    Raises:
        ValueError: A shape, dtype or device is another.
    """
    check_width(x, width)
    if words.shape != expected:
        raise ValueError(f"expected words of shape {expected}, got {tuple(words.shape)}")
    if words.dtype != torch.int32:
        raise ValueError(f"expected words of torch.int32, got {words.dtype}")
    if words.device != x.device:
        raise ValueError(f"expected words on {x.device}, where the activations are, got {words.device}")


def check_width(x: Tensor, width: int) -> None:
    """Require a last dimension.

    Raises:
        ValueError: It is another.
    """
    if x.shape[-1:] != (width,):
        raise ValueError(f"expected a last dimension of {width}, got a tensor of shape {tuple(x.shape)}")


def check_bias(x: Tensor, bias: Tensor | None, rows: int) -> None:
    """Require one number a row, on the device of the activations.

    Raises:
        ValueError: The bias is another.
    """
    if bias is None:
        return
    if bias.shape != (rows,):
        raise ValueError(f"expected a bias of shape {(rows,)}, got {tuple(bias.shape)}")
    if bias.device != x.device:
        raise ValueError(f"expected a bias on {x.device}, where the activations are, got {bias.device}")


def check_sparse_arguments(x: Tensor, sparse: SparseCodes) -> None:
    """Require shapes, dtypes and devices that belong together.

    Raises:
        ValueError: They do not.
    """
    if not x.ndim:
        raise ValueError("expected activations of at least one dimension, got a scalar")
    out, entries = sparse.scales.shape[:1], sparse.codes.shape[:1]
    expected = {
        "row_starts": (sparse.row_starts, torch.int32, (*(size + 1 for size in out),)),
        "columns": (sparse.columns, torch.int32, (*entries,)),
        "codes": (sparse.codes, torch.uint8, (*entries,)),
        "scales": (sparse.scales, None, (*out,)),
        "zero_points": (sparse.zero_points, None, (*out,)),
    }
    for name, (tensor, dtype, shape) in expected.items():
        if tensor.ndim != 1 or tensor.shape != shape:
            raise ValueError(f"expected {name} of shape {shape or '[out]'}, got {tuple(tensor.shape)}")
        if tensor.dtype != dtype and (dtype or not tensor.is_floating_point()):
            raise ValueError(f"expected {name} of {dtype or 'a floating-point dtype'}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"expected {name} on {x.device}, where the activations are, got {tensor.device}")


def check_sparse_ranges(sparse: SparseCodes, length: int) -> None:
    """Require that every entry lies in the matrix; reads all row starts and columns.

    Args:
        sparse: Entries whose shapes were checked.
        length: Columns of the matrix.

    Raises:
        ValueError: A column is outside, or the row starts do not ascend from 0 to the number of entries.
    """
    starts, columns = sparse.row_starts, sparse.columns
    entries = len(columns)
    if int(starts[0]) != 0 or int(starts[-1]) != entries or bool((starts[1:] < starts[:-1]).any()):
        raise ValueError(f"expected row_starts that ascend from 0 to {entries}, the number of entries")
    if not entries:
        return
    first, last = (int(bound) for bound in columns.aminmax())
    if first < 0 or last >= length:
        raise ValueError(f"expected columns from 0 to {length - 1}, got {first} to {last}")
