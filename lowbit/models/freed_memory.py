"""When the C library hands freed memory back to the operating system: at once, or not while it is needed again."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


def release_freed_memory() -> None:
    """Return the free pages of the C library's heap; does nothing where the library is not glibc.

    glibc keeps freed tensors of some megabytes in its heap, where the next block's rarely fit between what is left:
    without this, the memory of a run grows slowly with the number of blocks.
    """
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def kept_freed_memory() -> Iterator[None]:
    """Let the C library's heap keep freed memory inside the context; does nothing where the library is not glibc.

    A training step frees and asks for the same sizes again and again. By default each larger piece goes back to the
    system and comes anew, a page fault for every 4 kB, which made steps of a small model a sixth slower.
    """
    option = _c_function("mallopt")
    if option is None:
        yield
        return
    option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    option(_TRIM_THRESHOLD, _KEPT)
    option(_TOP_PAD, _GROWTH)
    try:
        yield
    finally:
        option(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        option(_TOP_PAD, 0)
        release_freed_memory()


# From glibc's malloc.h; thresholds in bytes.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 2**25
_KEPT, _GROWTH = 2**30, 2**26


@cache
def _c_function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
