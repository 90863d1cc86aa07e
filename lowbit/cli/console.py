"""The console that commands print to."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowbit.untrusted import printable

# A table that goes to a file or a pipe is not squeezed into a terminal's default 80 columns.
PLAIN_WIDTH = 180


def output() -> Console:
    """Return the console for results: as wide as the terminal, or wide enough for a table in a file or pipe."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, emoji=False, highlight=False)


def add_row(table: Table, *cells: str) -> None:
    """Add a row whose cells are shown as they are, brackets included; control characters are named."""
    table.add_row(*(Text(printable(cell)) for cell in cells))
