"""Work on pieces of a matrix, a piece a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def map_chunks(work: Callable[..., Result], chunks: Iterable[tuple[Tensor, ...]]) -> list[Result]:
    """Apply a function to every chunk, on as many threads as torch has, and return the results in order.

    Each call runs on one thread. A chunk that stays in a core's cache is too small for torch to share out well among
    threads; and so the results do not depend on the number of threads.

    Args:
        work: Called with the tensors of a chunk; changes nothing outside of them.
        chunks: From `row_chunks`, or other tuples of tensors.
    """
    pieces = list(chunks)
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1 or pieces[0][0].device.type != "cpu":
        return [work(*piece) for piece in pieces]
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            return list(pool.map(lambda piece: work(*piece), pieces))
    finally:
        torch.set_num_threads(before)
