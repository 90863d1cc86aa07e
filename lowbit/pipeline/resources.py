"""How much memory a stretch of work took at its peak."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch

from lowbit.errors import LowbitError
from lowbit.models.freed_memory import release_freed_memory

INTERVAL_SECONDS = 0.005


class PeakMemory:
    """Samples the process's resident memory while its context is open.

    On Linux anonymous pages are counted: memory-mapped weight files, which the system can drop at any time, are not.
    """

    def __init__(self) -> None:
        self.start_bytes = 0
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        release_freed_memory()
        self.start_bytes = self.peak_bytes = resident_bytes()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, resident_bytes())

    @property
    def device_bytes(self) -> int:
        """Peak memory that torch allocated on the first GPU; 0 without one."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.peak_bytes = max(self.peak_bytes, resident_bytes())


def resident_bytes() -> int:
    """Return the process's anonymous resident memory, or all of it where the system does not tell them apart."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def require_device(text: str) -> None:
    """Check that work can be done on a device.

    Raises:
        LowbitError: The name is none of cpu, cuda, cuda:N, mps, or there is no such device here.
    """
    try:
        torch.empty(0, device=text)
        known = torch.device(text).type in ("cpu", "cuda", "mps")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise LowbitError(f"device {text!r} cannot be used here: {reason}") from error
    if not known:
        raise LowbitError(f"device {text!r} cannot be used; expected cpu, cuda, cuda:N or mps")
