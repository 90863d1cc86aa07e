"""Says in plain words that memory did not suffice, whoever found out: Python, torch, an accelerator, the system."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from lowbit.errors import LowbitError

_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "unable to allocate",
    "can't start new thread",
    "failed to map segment from shared object",
)
"""What messages say when memory is short; torch and its libraries raise plain `RuntimeError`s."""


class OutOfMemoryError(LowbitError):
    """Memory did not suffice; the message says how to need less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error, or one that it was raised from, means that memory did not suffice."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        if isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM):
            return True
        if any(sign in str(seen).lower() for sign in _SIGNS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def as_clear_error(error: BaseException) -> LowbitError | None:
    """Return what to tell a user of an error that means that memory did not suffice; `None` of another one."""
    if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
        return None
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return OutOfMemoryError(
        f"memory did not suffice ({reason}); finished work is kept, and the same command continues from there with "
        "more memory; or give a smaller --batch_size, --n_samples, --seq_len or distillation.micro_batch_size; "
        "--dry_run forecasts what a run needs"
    )


@contextmanager
def memory_errors_told() -> Iterator[None]:
    """Turn an error that means that memory did not suffice into a clear one.

    Raises:
        LowbitError: Memory did not suffice.
    """
    try:
        yield
    except Exception as error:
        told = as_clear_error(error)
        if told is None:
            raise
        raise told from error
