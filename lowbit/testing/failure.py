"""How the kit says that a plugin breaks its contract, and what it adds without failing."""

from __future__ import annotations

import warnings
from textwrap import dedent, indent

ANY_ERROR = (Exception, SystemExit)
"""What code under test may raise; a plugin that leaves the process must not end the checks as if they had passed."""


class ConformanceError(AssertionError):
    """A broken contract, as a reviewer would note it.

    Args:
        expected: What the contract says.
        got: What came instead, with the input that it came for.
        reproduce: A few lines of Python that show it again.
    """

    def __init__(self, expected: str, got: str, reproduce: str) -> None:
        self.expected = expected
        self.got = got
        self.reproduce = dedent(reproduce).strip()
        super().__init__(f"expected: {expected}\ngot: {got}\nreproduce:\n{indent(self.reproduce, '    ')}")


class ConformanceNote(UserWarning):
    """Something that breaks no contract, and that readers of a result should know."""


def require(holds: bool, expected: str, got: str, reproduce: str) -> None:
    """Raise `ConformanceError` unless something holds."""
    if not holds:
        raise ConformanceError(expected, got, reproduce)


def note(message: str) -> None:
    """Tell whoever runs the checks something that is no failure."""
    warnings.warn(message, ConformanceNote, stacklevel=3)
