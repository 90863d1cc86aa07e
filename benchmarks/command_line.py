"""How a benchmark that can be continued ends: with a line in place of a traceback."""

from __future__ import annotations

import sys

import click

from lowbit.errors import LowbitError


def run(main: click.Command) -> None:
    """Run a benchmark's command; what a user can mend, and Ctrl-C, end it with one line and exit code 1."""
    try:
        main(standalone_mode=False)
    except (LowbitError, click.ClickException) as error:
        sys.exit(f"error: {error}")
    except click.Abort:
        sys.exit("interrupted; the same command continues")
