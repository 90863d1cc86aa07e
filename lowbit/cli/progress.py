"""What a long run shows: a live view in a terminal, plain lines elsewhere, nothing when it shall be quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console

from lowbit.cli.live_view import LiveView
from lowbit.cli.verbosity import Verbosity, logged_to
from lowbit.distillation.processes import is_main_process
from lowbit.progress import RunLines
from lowbit.progress.state import RunState
from lowbit.recipe import Recipe
from lowbit.registry import registry


def on_terminal() -> bool:
    """Say whether stderr is a terminal on which a view can be drawn again and again."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def messages_console() -> Console:
    """Return the console of what is not a result: stderr, without any control character where it is no terminal."""
    if on_terminal():
        return Console(stderr=True, markup=False, highlight=False)
    return Console(stderr=True, markup=False, highlight=False, force_terminal=False, no_color=True)


@contextmanager
def progress(verbosity: Verbosity, recipes: Sequence[Recipe] = ()) -> Iterator[Callable[[str], None]]:
    """Show a run while the context is open, and yield what prints a line of its own.

    Args:
        verbosity: How much to show.
        recipes: The recipes of the run in their order.
    """
    console = messages_console()

    def write(line: str) -> None:
        console.print(line, style="dim", soft_wrap=True)

    with ExitStack() as opened:
        opened.enter_context(logged_to(console, verbosity))
        if verbosity >= Verbosity.DEBUG:
            registry().trace()
        if verbosity == Verbosity.QUIET or not is_main_process():
            yield lambda line: None
            return
        state = RunState([recipe.to_dict() for recipe in recipes])
        if on_terminal():
            opened.enter_context(LiveView(state, console))
        lines = RunLines(state, write, verbosity >= Verbosity.VERBOSE, blocks=not on_terminal())
        opened.enter_context(registry().observing(lines))
        yield write
