"""Processes that are threads, for tests of what several processes do together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor


class _Table:
    """Where the threads lay down what the others read."""

    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size, timeout=20)
        self.places: list[Any] = [None] * size


class ThreadRanks:
    """One of several threads that play processes."""

    device = torch.device("cpu")

    def __init__(self, rank: int, size: int, table: _Table) -> None:
        self.rank, self.size, self._table = rank, size, table

    def gather(self, value: Any) -> list[Any]:
        self._table.places[self.rank] = value
        self._table.barrier.wait()
        found = list(self._table.places)
        self._table.barrier.wait()
        return found

    def sum(self, tensor: Tensor, to: Collection[int]) -> None:
        terms = self.gather(tensor.clone())
        tensor.copy_(sum(terms) if self.rank in to else torch.full_like(tensor, torch.nan))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self.gather(tensor)[source])


def in_ranks(size: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Let every rank do its work, and return what each returned."""
    table = _Table(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(ThreadRanks(rank, size, table)), range(size)))
