"""How fast the disk takes and gives back files, by writing one and reading it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from lowbit.durable import write_tensors
from lowbit.pipeline.measuring import Stopwatch

SAMPLE_BYTES = 2**26


@dataclass(frozen=True)
class DiskRate:
    """What reading and writing takes.

    Args:
        file_seconds: Writing a file of next to nothing, safely.
        write_seconds: A byte more of it.
        read_seconds: Reading a byte back that is not in memory, and turning it from 16 bits a number into 32.
    """

    file_seconds: float
    write_seconds: float
    read_seconds: float

    def write(self, size: float, files: int = 1) -> float:
        """Return the seconds that writing takes.

        Args:
            size: Bytes in all.
            files: How many files they are in.
        """
        return files * self.file_seconds + size * self.write_seconds

    def read(self, size: float) -> float:
        """Return the seconds that reading bytes takes."""
        return size * self.read_seconds


def measure_disk(near: Path, watch: Stopwatch) -> DiskRate:
    """Write and read a file of some megabytes.

    Args:
        near: Where files shall be written; the nearest folder above it that is there and can be written is taken, or
            else the folder for temporary files.
        watch: Times.
    """
    with tempfile.TemporaryDirectory(dir=_writable(near), prefix=".lowbit-dry-run-") as folder:
        small, large = Path(folder) / "small.safetensors", Path(folder) / "large.safetensors"
        sample = {"sample": torch.ones(SAMPLE_BYTES // 2, dtype=torch.float16)}
        file_seconds = watch.typical(lambda: write_tensors(small, {"sample": torch.ones(16)}))
        written = watch.once(lambda: write_tensors(large, sample))
        _forget(large)
        read = watch.once(lambda: load_file(large)["sample"].float())
    return DiskRate(file_seconds, max(0.0, written - file_seconds) / SAMPLE_BYTES, read / SAMPLE_BYTES)


def _writable(near: Path) -> Path | None:
    for folder in (near, *near.absolute().parents):
        if folder.is_dir():
            return folder if os.access(folder, os.W_OK) else None
    return None


def _forget(file: Path) -> None:
    """Ask the system to drop a file from its cache."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
