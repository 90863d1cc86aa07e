"""Chunks of a matrix on several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lowbit import map_chunks, row_chunks


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_chunks(two_threads: None) -> None:
    weight = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(torch.cat(map_chunks(lambda rows: rows * 2, [(rows,) for rows in weight.split(1)])), weight * 2)


def test_several_threads_work_and_each_on_one(two_threads: None) -> None:
    seen: set[tuple[int, int]] = set()
    meeting = threading.Barrier(2, timeout=30)

    def work(rows: Tensor) -> None:
        meeting.wait()
        seen.add((threading.get_ident(), torch.get_num_threads()))

    map_chunks(work, [(rows,) for rows in torch.zeros(2, 2).split(1)])
    assert len(seen) == 2
    assert {threads for _, threads in seen} == {1}
    assert torch.get_num_threads() == 2


def test_an_error_in_a_chunk_is_raised_and_the_threads_are_restored(two_threads: None) -> None:
    def work(rows: Tensor) -> None:
        raise ValueError("bad rows")

    with pytest.raises(ValueError, match="bad rows"):
        map_chunks(work, row_chunks(torch.zeros(3, 2**17)))
    assert torch.get_num_threads() == 2


def test_one_thread_or_one_chunk_needs_no_pool() -> None:
    weight = torch.ones(3, 4)
    names = map_chunks(lambda rows: threading.current_thread().name, row_chunks(weight))
    assert names == [threading.current_thread().name]
