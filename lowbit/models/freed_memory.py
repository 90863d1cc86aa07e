"""Hands freed memory back to the operating system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def release_freed_memory() -> None:
    """Return the free pages of the C library's heap; does nothing where the library is not glibc.

    glibc keeps freed tensors of some megabytes in its heap, where the next block's rarely fit between what is left:
    without this, the memory of a run grows slowly with the number of blocks.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
