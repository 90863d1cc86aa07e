"""The live view of a run in a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowbit.progress.state import RunState, duration, errors_of, short_name

BAR_WIDTH = 24
LAYERS_SHOWN = 8
REFRESHES_PER_SECOND = 4


class LiveView:
    """Draws a run's state again and again while its context is open, and leaves nothing behind.

    Args:
        state: What to draw.
        console: Where.
    """

    def __init__(self, state: RunState, console: Console) -> None:
        self._state = state
        self._started = time.monotonic()
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def render(self) -> RenderableType:
        """Return what is to be seen now: the method, a bar for each thing that is counted, the last layers' errors."""
        state = self._state
        state.memory.look()
        elapsed = duration(time.monotonic() - self._started)
        name = f"{state.title} on {state.model}" if state.method else "starting"
        head = Text.assemble((name, "bold"), f"  {state.memory}  elapsed {elapsed}")
        bars = Table.grid(padding=(0, 1))
        for counter in state.counters:
            rest = counter.remaining
            left = "" if rest is None else f"{duration(rest)} left"
            total = None if counter.total is None else float(max(counter.total, 1))
            bar = ProgressBar(total=total, completed=counter.done, width=BAR_WIDTH)
            bars.add_row(Text(counter.text), bar, counter.count, duration(counter.elapsed), left)
        return Group(head, bars, *self._errors())

    def _errors(self) -> list[Text]:
        """Return the last block's errors: mean and largest, and one a layer where these are few."""
        reports = self._state.reports
        if not reports:
            return []
        lines = [Text(f"block {self._state.block + 1}: {errors_of(reports)}", style="cyan")]
        if len(reports) <= LAYERS_SHOWN:
            each = "  ".join(f"{short_name(report.name)} {report.relative_error:.4f}" for report in reports)
            lines.append(Text(f"  {each}", style="dim"))
        return lines
