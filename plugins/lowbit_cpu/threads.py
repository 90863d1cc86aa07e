"""Doing shares of one piece of compiled work in several threads."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import torch

from lowbit_cpu.jit import CompiledCode


class Team(StrEnum):
    """Where threads come from."""

    OPENMP = "openmp"
    POOL = "pool"
    SERIAL = "serial"


@dataclass(frozen=True)
class OpenMP:
    """Entry points of the OpenMP library that torch itself runs on.

    Args:
        parallel: `GOMP_parallel(function, data, threads, flags)`.
        thread_number: Address of `omp_get_thread_num`.
        thread_count: Address of `omp_get_num_threads`.
    """

    parallel: Callable[[int, int, int, int], None]
    thread_number: int
    thread_count: int


@cache
def openmp() -> OpenMP | None:
    """Find the OpenMP library that torch loaded, so that both share one set of threads; `None` if it has none."""
    libraries = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            library = ctypes.CDLL(str(libraries / name))  # symbols of its dependencies are found through it
            parallel = library.GOMP_parallel
            addresses = [
                ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
                for symbol in ("omp_get_thread_num", "omp_get_num_threads")
            ]
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return OpenMP(parallel, addresses[0] or 0, addresses[1] or 0)
    return None


class Threads:
    """Runs work in the threads that torch would use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_size = 0
        self._forked = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def run(self, code: CompiledCode, arguments: Sequence[int], shares: int, team: Team | None = None) -> None:
        """Do all shares of the work.

        Args:
            code: What to run.
            arguments: Its arguments from the third on; the first two are where OpenMP is asked.
            shares: Threads to use at most.
            team: Where threads come from; chosen if `None`.
        """
        library = openmp() if team in (None, Team.OPENMP) and not self._forked else None
        asking = (library.thread_number, library.thread_count) if library else (0, 0)
        array = (ctypes.c_int64 * (len(arguments) + 2))(*asking, *arguments)
        if shares == 1 or team is Team.SERIAL:
            code.run(array, 0, 1)
        elif library is not None:
            library.parallel(code.parallel, ctypes.addressof(array), shares, 0)
        else:
            self._run_in_pool(code, array, shares)

    def _run_in_pool(self, code: CompiledCode, array: ctypes.Array[ctypes.c_int64], shares: int) -> None:
        pool = self._sized_pool(shares - 1)
        futures = [pool.submit(code.run, array, share, shares) for share in range(1, shares)]
        code.run(array, 0, shares)
        wait(futures)
        for future in futures:
            future.result()

    def _sized_pool(self, size: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool_size < size:
                self._pool = ThreadPoolExecutor(size, thread_name_prefix="lowbit-cpu")
                self._pool_size = size
            return self._pool

    def _after_fork(self) -> None:
        """Threads do not survive a fork; GNU's OpenMP would wait for them for ever."""
        self._lock = threading.Lock()
        self._pool = None
        self._pool_size = 0
        self._forked = True


THREADS = Threads()
