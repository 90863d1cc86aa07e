"""Progress of a model that writes token sequences: the same view as a run's, over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lowbit.cli.live_view import LiveView
from lowbit.cli.progress import messages_console, on_terminal
from lowbit.cli.verbosity import Verbosity, logged_to
from lowbit.progress import RunLines
from lowbit.progress.state import RunState

RECIPE = {"method": "generate"}


@contextmanager
def batch_progress(verbosity: Verbosity) -> Iterator[Callable[[int, int], None]]:
    """Show batches while the context is open, and yield what is told of finished batches and all of them.

    Batches that were finished earlier are those of the first call.

    Args:
        verbosity: How much to show.
    """
    console = messages_console()
    state = RunState()
    detailed = verbosity >= Verbosity.VERBOSE
    lines = RunLines(state, lambda line: console.print(line, style="dim", soft_wrap=True), detailed, not on_terminal())
    told = False

    def announce(finished: int, batches: int) -> None:
        nonlocal told
        if finished and not told:
            console.print(f"continuing: {finished} of {batches} batches were finished before", style="dim")
        told = True
        lines.lowbit_tokens_generated(RECIPE, finished, batches)

    with logged_to(console, verbosity):
        if verbosity == Verbosity.QUIET:
            yield lambda finished, batches: None
        elif on_terminal():
            with LiveView(state, console):
                yield announce
        else:
            yield announce
