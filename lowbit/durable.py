"""Files that are whole or absent, and work that one process does while others wait."""

from __future__ import annotations

import glob
import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lowbit.errors import LowbitError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".tmp"
_POLL_SECONDS = 0.25


def temporary_name(path: Path) -> Path:
    """Return where a file is written before it is whole; no two writers meet there, on one machine or several."""
    # Containers on different machines often have the same process number.
    return path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of a file under temporary names; nobody else may be writing it."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*-*{TEMPORARY_SUFFIX}"):
        with suppress(OSError):
            leftover.unlink()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    Args:
        path: Where the file appears once it is whole.
        write: Writes the content to the path that it is given.

    Raises:
        LowbitError: The disk is full or the place cannot be written; no part of the file is left.
    """
    temporary = temporary_name(path)
    try:
        # Some writers make private files; the mode that the user's umask gives is taken from an ordinary one.
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        _flush(temporary)
        temporary.replace(path)
        flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # Where even the name is refused, the first error is the one to tell.
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise LowbitError(f"cannot write {path}: {error}; nothing half-written was left") from error
        raise


@contextmanager
def open_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name, flushed to the disk, when the context closes well.

    Raises:
        LowbitError: The disk is full or the place cannot be written; no part of the file is left.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # Where even the name is refused, the first error is the one to tell.
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise LowbitError(f"cannot write {path}: {error}; nothing half-written was left") from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all; the folder is made when absent."""
    make_directory(path.parent)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all; the bytes depend on names and values only."""
    from safetensors.torch import save_file

    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    write_whole(path, lambda temporary: save_file(ordered, temporary, metadata={"format": "pt"}))


def make_directory(path: Path) -> None:
    """Make a directory and its parents.

    Raises:
        LowbitError: The place cannot be written, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LowbitError(f"cannot make the directory {path}: {error}") from error
    if not os.access(path, os.W_OK):
        raise LowbitError(f"the directory {path} cannot be written; choose another with --output_path or -o")


@contextmanager
def one_at_a_time(lock: Path, work: str, wait: bool = True) -> Iterator[None]:
    """Let one process in at a time; the others wait, and say so once, or are refused.

    The operating system frees the lock when its process ends, however it ends. The file itself stays behind, unless
    what was to be done is done: then whoever was let in may remove it, as those who come later find nothing to do.

    Args:
        lock: The lock's file; its folder must be there.
        work: What is done inside, for the message: `quantizing MODEL`.
        wait: Whether to wait for a process that is inside.

    Raises:
        LowbitError: The place cannot be written, or another process is inside and `wait` is off.
    """
    from filelock import FileLock, Timeout

    # A lock of the library's own instead of the operating system's would outlive a killed process.
    held = FileLock(lock, fallback_to_soft=False)
    holder = _holder(lock)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise LowbitError(
                    f"another process{_holder(lock) or holder} is {work} (lock {lock}); wait until it has ended, or "
                    "choose another output"
                ) from None
            logger.warning("waiting for another process that is %s (lock %s)", work, lock)
            held.acquire(poll_interval=_POLL_SECONDS)
    except OSError as error:
        raise LowbitError(f"cannot lock {lock}: {error}") from error
    try:
        _sign(lock)
        yield
    finally:
        held.release()


def _sign(lock: Path) -> None:
    """Write into a held lock who holds it; a full disk is no reason to stop."""
    told = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    with suppress(OSError):
        descriptor = os.open(lock, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(told)


def _holder(lock: Path) -> str:
    """Return ` (process 7 on HOST)` as a lock says it, or nothing where it does not say."""
    try:
        written = json.loads(lock.read_text(encoding="utf-8"))
        return f" (process {int(written['pid'])} on {written['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def flush_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk, so that a rename outlives a power failure, where it can be."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
