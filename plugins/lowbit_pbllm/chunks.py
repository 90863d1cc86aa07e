"""A few columns at a time, so that temporaries stay small even beside a small layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

AT_A_TIME = 2**15  # elements


def column_chunks(columns: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same few consecutive columns of every tensor.

    Args:
        columns: [in, out], a column of the weight in each row.
        *others: Tensors with as many rows.
    """
    count = max(1, AT_A_TIME // max(1, columns.shape[1]))
    yield from zip(*(torch.split(tensor, count) for tensor in (columns, *others)), strict=True)
