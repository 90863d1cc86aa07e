"""Progress of generated batches in a terminal, with remaining time."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console

from lowbit.cli.progress_bar import make_progress


class BatchProgress:
    """Shows a bar over batches while its context is open; called with finished batches and all of them.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._progress = make_progress(console)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, finished: int, batches: int) -> None:
        """Open the bar at the first call, and advance it; batches that were finished earlier count as done."""
        if self._progress.task_ids:
            self._progress.update(self._progress.task_ids[0], completed=finished)
            return
        if finished:
            self._progress.console.print(f"continuing: {finished} of {batches} batches were finished before")
        self._progress.start()
        self._progress.add_task("generating: batches", total=batches, completed=finished)
