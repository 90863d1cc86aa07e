"""Groups of columns that share scales; the last group of a row may be shorter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor


def _check_group_size(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("must be a positive number of columns, or -1 for one group a row")
    return value


GroupSize = Annotated[int, AfterValidator(_check_group_size)]

# Half a megabyte of float32 stays in a core's second-level cache; larger and smaller chunks measured slower.
CHUNK_ELEMENTS = 2**17
# For a few operations on a matrix that takes part in a training step, starting each of them costs more.
PIECE_ELEMENTS = 2**17


def group_count(length: int, group_size: int) -> int:
    """Return how many groups a row has; a `group_size` of -1 means one group for the whole row."""
    return 1 if group_size == -1 else -(-length // group_size)


def _columns(length: int, group_size: int) -> int:
    """Return how many columns a group spans: never more than the row has."""
    return length if group_size == -1 else min(group_size, length)


def group_lengths(length: int, group_size: int) -> Tensor:
    """Return how many columns each group of a row really has, int64 [groups]; the last may have fewer."""
    size = _columns(length, group_size)
    lengths = torch.full((group_count(length, group_size),), size)
    lengths[-1] = length - size * (len(lengths) - 1)
    return lengths


def to_groups(weight: Tensor, group_size: int) -> Tensor:
    """Split rows into groups, filling a shorter last group with zeros.

    Args:
        weight: [out, in].
        group_size: Columns a group, or -1 for the whole row.

    Returns:
        [out, groups, columns], where columns is `group_size`, or the length of a row that is shorter.
    """
    out, length = weight.shape
    size = _columns(length, group_size)
    groups = group_count(length, group_size)
    padded = torch.nn.functional.pad(weight, (0, groups * size - length))
    return padded.reshape(out, groups, size)


def from_groups(grouped: Tensor, length: int) -> Tensor:
    """Undo `to_groups`: [out, groups, columns] to [out, length]."""
    return grouped.reshape(grouped.shape[0], -1)[:, :length]


def repeat_groups(scales: Tensor, group_size: int, length: int) -> Tensor:
    """Repeat each group's scale for its columns: [out, groups] to [out, length]."""
    if scales.shape[1] == 1:
        return scales.expand(-1, length)
    return scales.repeat_interleave(group_size, dim=1)[:, :length]


def row_chunks(weight: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same few consecutive rows of every tensor, so that temporaries stay in cache and memory bounded.

    Args:
        weight: [out, in]; its width decides how many rows a chunk has.
        *others: Tensors with as many rows.
    """
    rows = max(1, CHUNK_ELEMENTS // max(1, weight.shape[1]))
    yield from zip(*(torch.split(tensor, rows) for tensor in (weight, *others)), strict=True)


def group_views(matrix: Tensor, group_size: int) -> list[Tensor]:
    """Return views of a matrix [out, in]: its whole groups [out, groups, columns], then a shorter last one if any."""
    length = matrix.shape[1]
    size = _columns(length, group_size)
    whole = length - length % size
    views = [matrix[:, :whole].unflatten(1, (-1, size))]
    return views if whole == length else [*views, matrix[:, whole:].unsqueeze(1)]


def group_pieces(
    matrices: Sequence[Tensor], scales: Sequence[Tensor], group_size: int
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Yield views of the same groups of several matrices and of their scales: on a CPU so few that they stay in cache.

    Args:
        matrices: [out, in] each.
        scales: [out, groups] each.
        group_size: Columns a group, or -1 for whole rows.

    Yields:
        The matrices' views [rows, groups, columns] and the scales' [rows, groups, 1], both to be written to as well.
    """
    out, length = matrices[0].shape
    on_cpu = matrices[0].device.type == "cpu"
    rows = max(1, PIECE_ELEMENTS // max(1, length)) if on_cpu else max(1, out)
    for start in range(0, out, rows):
        views = [group_views(matrix[start : start + rows], group_size) for matrix in matrices]
        first = 0
        for groups in zip(*views, strict=True):
            last = first + groups[0].shape[1]
            yield groups, tuple(scale[start : start + rows, first:last].unsqueeze(-1) for scale in scales)
            first = last
