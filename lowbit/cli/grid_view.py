"""What is seen of a grid on a cluster: a live view of the cells at work in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowbit.cli.live_view import BAR_WIDTH, REFRESHES_PER_SECOND
from lowbit.cli.progress import messages_console, on_terminal
from lowbit.cli.verbosity import Verbosity, logged_to
from lowbit.engines.grid_plan import GridWatcher
from lowbit.progress import duration

CELLS_SHOWN = 20


class GridView(GridWatcher):
    """Keeps what is known of a grid, and says what happens in it.

    Args:
        write: Prints a line.
        lines: Whether to print what workers say of their cells; a live view shows it itself.
        clock: Tells seconds.
    """

    def __init__(
        self, write: Callable[[str], None], lines: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._lines = lines
        self._clock = clock
        self._started = clock()
        self._titles: dict[int, str] = {}
        self._at_work: dict[int, Mapping[str, Any]] = {}
        self._done = self._failed = 0

    def planned(self, titles: Mapping[int, str], finished: int) -> None:
        """Say how much there is to do."""
        self._titles = dict(titles)
        before = f", {finished} were finished before" if finished else ""
        self._write(f"grid: {len(titles)} cells to run{before}")

    def started(self, number: int) -> None:
        """Wait for the cell's worker to speak: until then it may lie in the cluster's queue."""

    def reported(self, number: int, report: Mapping[str, Any]) -> None:
        """Show how far a cell is, or print what its worker says."""
        if number not in self._titles:
            return
        if "line" not in report:
            self._at_work[number] = report
            return
        self._at_work.setdefault(number, {})
        if self._lines:
            self._write(f"[{number}] {self._titles[number]}: {report['line']}")

    def ended(self, number: int, error: str | None) -> None:
        """Count a cell."""
        title = self._titles.pop(number, "")
        self._at_work.pop(number, None)
        self._done += error is None
        self._failed += error is not None
        self._write(f"[{number}] {title}: {'done' if error is None else f'failed: {error}'} ({self.summary})")

    @property
    def summary(self) -> str:
        """How much is done, and how long the rest takes at this pace."""
        ended = self._done + self._failed
        elapsed = self._clock() - self._started
        left = f", {duration(elapsed / ended * len(self._titles))} left" if ended and self._titles else ""
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{ended} of {ended + len(self._titles)} cells{failed}, {duration(elapsed)}{left}"

    def render(self) -> RenderableType:
        """Return what is to be seen now: a line a cell at work, with a bar for what it is counting."""
        table = Table.grid(padding=(0, 1))
        for number in sorted(self._at_work)[:CELLS_SHOWN]:
            report = self._at_work[number]
            text, done, total = (report.get("counters") or [("starting", 0, None)])[-1]
            bar = ProgressBar(total=None if total is None else float(max(total, 1)), completed=done, width=BAR_WIDTH)
            count = f"{done}" if total is None else f"{done} of {total}"
            table.add_row(Text(self._titles[number]), Text(text), bar, count, Text(str(report.get("memory", ""))))
        more = len(self._at_work) - CELLS_SHOWN
        rest = [Text(f"and {more} more cells at work", style="dim")] if more > 0 else []
        return Group(Text(f"grid: {self.summary}, {len(self._at_work)} at work", style="bold"), table, *rest)


@contextmanager
def grid_progress(verbosity: Verbosity) -> Iterator[tuple[GridWatcher, Callable[[str], None]]]:
    """Show a grid while the context is open; yield what watches it, and what prints a line of its own.

    Args:
        verbosity: How much to show.
    """
    console = messages_console()

    def write(line: str) -> None:
        console.print(line, style="dim", soft_wrap=True)

    with ExitStack() as opened:
        opened.enter_context(logged_to(console, verbosity))
        if verbosity == Verbosity.QUIET:
            yield GridWatcher(), lambda line: None
            return
        live = on_terminal()
        view = GridView(write, lines=not live or verbosity >= Verbosity.VERBOSE)
        if live:
            opened.enter_context(_live(view, console))
        yield view, write


def _live(view: GridView, console: Console) -> Live:
    return Live(console=console, get_renderable=view.render, refresh_per_second=REFRESHES_PER_SECOND, transient=True)
