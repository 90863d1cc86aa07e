"""How much a command says: levels, and where log messages and warnings go."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from typing import Any

from rich.console import Console
from rich.text import Text

from lowbit.untrusted import printable

LIBRARIES = ("lm_eval", "transformers", "datasets", "httpx", "huggingface_hub", "accelerate")
PYTHON_WARNINGS = "py.warnings"


class Verbosity(IntEnum):
    """How much a command says beside its result."""

    QUIET = -1
    NORMAL = 0
    VERBOSE = 1
    DEBUG = 2


def choose(quiet: bool, verbose: int) -> Verbosity:
    """Return what `--quiet` and the number of `-v` mean, and keep libraries' own progress bars away.

    The bars are kept away by an environment variable that counts when the library is imported, so that this must come
    first.
    """
    chosen = Verbosity.QUIET if quiet else Verbosity(min(verbose, Verbosity.DEBUG))
    if chosen < Verbosity.DEBUG:
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return chosen


class LogLines(logging.Handler):
    """Prints a message as `lowbit: warning: ...` above whatever else a console shows.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; one of another library carries its name."""
        source = record.name.split(".")[0]
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        named = "" if record.name == PYTHON_WARNINGS or source == "lowbit" else f"{source}: "
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        try:
            self._console.print(Text(f"lowbit: {level}{named}{printable(self.format(record))}", style), soft_wrap=True)
        except Exception:
            self.handleError(record)


@contextmanager
def logged_to(console: Console, verbosity: Verbosity) -> Iterator[None]:
    """Print lowbit's messages to a console while the context is open, and libraries' as far as they are wanted.

    Args:
        console: Where to print.
        verbosity: lowbit itself: errors (quiet), its messages and warnings (normal and verbose), everything (debug).
            Libraries: errors, with `-v` warnings, with `-vv` messages.
    """
    own, others = {
        Verbosity.QUIET: (logging.ERROR, logging.ERROR),
        Verbosity.NORMAL: (logging.INFO, logging.ERROR),
        Verbosity.VERBOSE: (logging.INFO, logging.WARNING),
        Verbosity.DEBUG: (logging.DEBUG, logging.INFO),
    }[verbosity]
    handler = LogLines(console)
    logging.getLogger().addHandler(handler)
    shown = warnings.showwarning
    warnings.showwarning = _log_warning
    with ExitStack() as changed:
        changed.callback(setattr, warnings, "showwarning", shown)
        changed.callback(logging.getLogger().removeHandler, handler)
        for name, level in (("lowbit", own), (PYTHON_WARNINGS, others), *((library, others) for library in LIBRARIES)):
            changed.enter_context(_at_level(logging.getLogger(name), level))
        yield


@contextmanager
def _at_level(logger: logging.Logger, level: int) -> Iterator[None]:
    """Give a logger a level, and no way to print but ours, while the context is open."""
    before = (logger.level, logger.propagate, logger.handlers[:])
    logger.setLevel(level)
    logger.propagate, logger.handlers = True, []
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1], before[2]


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """Log a Python warning: lowbit's own as its own, any other with where it came from."""
    if category.__module__.partition(".")[0] == "lowbit":
        logging.getLogger("lowbit").warning("%s", message)
    else:
        logging.getLogger(PYTHON_WARNINGS).warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)
