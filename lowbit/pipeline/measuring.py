"""Times and weighs a piece of work that stands for more of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from lowbit.models.freed_memory import release_freed_memory
from lowbit.pipeline.resources import PeakMemory

Clock = Callable[[], float]
"""Returns seconds since some moment."""

REPEATED_SECONDS = 0.25
MOST_REPEATS = 5
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Stopwatch:
    """Times work on a device.

    Args:
        device: Where the work is done; a GPU is waited for.
        clock: What tells the time; with one thread, the processor time leaves out what other programs take.
    """

    device: torch.device
    clock: Clock = time.perf_counter

    def once(self, work: Callable[[], object]) -> float:
        """Return the seconds that work takes."""
        started = self.now()
        work()
        return self.now() - started

    def now(self) -> float:
        """Return the time when everything is done that was begun."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def typical(self, work: Callable[[], object]) -> float:
        """Return the median of some repetitions; of work that takes long, there is one."""
        seconds = [self.once(work)]
        while len(seconds) < MOST_REPEATS and sum(seconds) < REPEATED_SECONDS:
            seconds.append(self.once(work))
        return statistics.median(seconds)


def peak_bytes_of(work: Callable[[], object], device: torch.device) -> int:
    """Return how much memory work takes at its peak beyond what is held before; on a GPU, the GPU's.

    Linux tells a process the exact peak; elsewhere it is sampled.
    """
    release_freed_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device)) - held
    try:
        _RESET.write_text("5")
        before = _status("VmRSS")
    except OSError:
        with PeakMemory() as memory:
            work()
        return memory.peak_bytes - memory.start_bytes
    work()
    return max(0, _status("VmHWM") - before)


def saved_bytes_of(forward: Callable[[], torch.Tensor], apart: Iterable[torch.Tensor]) -> int:
    """Return the bytes of all that a way forward leaves for the way back.

    Args:
        forward: Returns what the way back would start from.
        apart: Tensors that are not counted, such as the trained parameters.
    """
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in apart}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        forward()
        return sum(storage.nbytes() for storage in saved.values())


def _status(name: str) -> int:
    """Return one of the process's numbers in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")


@dataclass(frozen=True)
class Line:
    """A cost that grows linearly: `fixed + slope * size`.

    Args:
        fixed: At size 0, never negative.
        slope: By unit of size, never negative.
    """

    fixed: float
    slope: float

    def at(self, size: float) -> float:
        """Return the cost of a size."""
        return self.fixed + self.slope * size


def line_through(points: list[tuple[float, float]]) -> Line:
    """Fit a line to one point, or to the first and the last of several, in the order of their sizes.

    A line that noise lets fall, or start below 0, goes through the origin and the largest point instead.
    """
    ordered = sorted(points)
    (first, low), (last, high) = ordered[0], ordered[-1]
    if last > first:
        slope = (high - low) / (last - first)
        fixed = high - slope * last
        if slope >= 0 and fixed >= 0:
            return Line(fixed, slope)
        if slope < 0:
            return Line(max(low, high), 0.0)
    return Line(0.0, high / last)
