"""What enters the blocks of a run in progress, in files of consecutive samples, one file for each writing process."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from lowbit.contracts import Stream
from lowbit.durable import open_whole
from lowbit.errors import LowbitError

PREFIXES: dict[Stream, str] = {"quantized": "activations", "reference": "reference"}
_NAME = re.compile(r"(activations|reference)-(\d{5,})\.(\d{5,})-(\d{5,})\.npy")


@dataclass(frozen=True)
class _Shard:
    """A file of the samples `samples.start` to `samples.stop - 1`."""

    path: Path
    samples: range


class StoredActivations:
    """The samples that enter blocks, float32, in files `activations-BLOCK.FIRST-END.npy` of one directory.

    How samples are dealt out to files depends on how many processes wrote them, and nothing else does: whoever reads
    takes them in order from whichever files hold them.

    Args:
        folder: The directory.
        samples: How many samples there are.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        self._folder = folder
        self._samples = samples

    def are_whole(self, index: int, stream: Stream) -> bool:
        """Say whether every sample that enters a block is stored."""
        return self._samples > 0 and self._reached(index, stream) >= self._samples

    def read(self, index: int, stream: Stream, part: range | None) -> Iterator[Tensor]:
        """Yield samples [1, length, hidden size] of a block's input in order; all without `part`."""
        wanted = range(self._samples) if part is None else part
        position = wanted.start
        while position < wanted.stop:
            shard = self._holding(position, index, stream)
            stored = _open(shard)
            for sample in range(position, min(shard.samples.stop, wanted.stop)):
                yield _copied([stored[sample - shard.samples.start]])
            position = shard.samples.stop

    def batch(self, index: int, stream: Stream, samples: Sequence[int]) -> Tensor:
        """Return some samples of a block's input, [n, length, hidden size]."""
        opened: dict[_Shard, Any] = {}
        found = []
        for sample in samples:
            shard = next((shard for shard in opened if sample in shard.samples), None)
            if shard is None:
                shard = self._holding(sample, index, stream)
                opened[shard] = _open(shard)
            found.append(opened[shard][sample - shard.samples.start])
        return _copied(found)

    @contextmanager
    def write(self, index: int, stream: Stream, part: range | None) -> Iterator[_Writer]:
        """Open the file of a part of a block's input; it appears, whole, when the context closes."""
        samples = range(self._samples) if part is None else part
        nowhere = nullcontext(io.BytesIO())
        with open_whole(self._folder / _name(index, stream, samples)) if samples else nowhere as file:
            writer = _Writer(file, len(samples))
            yield writer
            writer.require_complete()

    def drop(self, before: int) -> None:
        """Delete what entered the blocks before one."""
        for path, _, index, _ in self._files():
            if index < before:
                path.unlink(missing_ok=True)

    def keep_whole_inputs(self, index: int) -> None:
        """Delete everything but complete inputs of a block; what is left of a killed run may overlap what comes."""
        kept = {path for path, stream, block, _ in self._files() if block == index and self.are_whole(index, stream)}
        for path in self._folder.glob("*.npy"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, Stream, int, range]]:
        """Return every file of activations: where it is, of which stream, which block and which samples."""
        found: list[tuple[Path, Stream, int, range]] = []
        streams = {prefix: stream for stream, prefix in PREFIXES.items()}
        for path in sorted(self._folder.glob("*.npy")):
            named = _NAME.fullmatch(path.name)
            if named:
                index, first, end = (int(number) for number in named.groups()[1:])
                found.append((path, streams[named[1]], index, range(first, end)))
        return found

    def _shards(self, index: int, stream: Stream) -> list[_Shard]:
        files = self._files()
        return [_Shard(path, samples) for path, of, block, samples in files if of == stream and block == index]

    def _reached(self, index: int, stream: Stream) -> int:
        """Return how many leading samples are stored."""
        reached = 0
        for shard in sorted(self._shards(index, stream), key=lambda shard: shard.samples.start):
            if shard.samples.start <= reached:
                reached = max(reached, shard.samples.stop)
        return reached

    def _holding(self, sample: int, index: int, stream: Stream) -> _Shard:
        for shard in self._shards(index, stream):
            if sample in shard.samples:
                return shard
        raise LowbitError(
            f"{self._folder} lacks sample {sample} of the inputs of block {index}; if several machines work on it, "
            "they must see one and the same folder; else delete it and start again"
        )


class _Writer:
    """Appends samples to an array file whose number of samples is known."""

    def __init__(self, file: IO[bytes], samples: int) -> None:
        self._file = file
        self._samples = samples
        self._written = 0

    def append(self, hidden: Tensor) -> None:
        """Add one sample, [1, length, hidden size]."""
        array = hidden.detach().float().cpu().contiguous().numpy()
        if self._written == 0:
            header = {"descr": "<f4", "fortran_order": False, "shape": (self._samples, *array.shape[1:])}
            np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(array.tobytes())
        self._written += 1

    def require_complete(self) -> None:
        """Raise unless every sample was written."""
        if self._written != self._samples:
            raise LowbitError(f"{self._written} of {self._samples} calibration samples were stored")


def _name(index: int, stream: Stream, samples: range) -> str:
    return f"{PREFIXES[stream]}-{index:05d}.{samples.start:05d}-{samples.stop:05d}.npy"


def _open(shard: _Shard) -> Any:
    """Map a file into memory.

    Raises:
        LowbitError: It is damaged.
    """
    try:
        stored = np.lib.format.open_memmap(shard.path, mode="r")
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, OverflowError) as error:
        raise LowbitError(
            f"{shard.path} cannot be read: {error}; delete {shard.path.parent} and start again"
        ) from error
    if stored.dtype != np.float32 or stored.ndim != 3 or len(stored) != len(shard.samples):
        raise LowbitError(
            f"{shard.path} holds {stored.dtype} {list(stored.shape)}, expected float32 "
            f"[{len(shard.samples)}, length, hidden size]; delete {shard.path.parent} and start again"
        )
    return stored


def _copied(samples: Sequence[Any]) -> Tensor:
    """Stack arrays in memory that torch aligned: where numbers lie must not decide how products are summed."""
    found = torch.empty(len(samples), *samples[0].shape)
    for place, sample in zip(found.numpy(), samples, strict=True):
        place[...] = sample
    return found
