"""Runs checks without a test runner, one after the other."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from unittest import SkipTest

from lowbit.errors import LowbitError
from lowbit.testing.conformance import Conformance
from lowbit.testing.failure import ANY_ERROR, ConformanceNote


@dataclass(frozen=True)
class Outcome:
    """What one check came to.

    Args:
        check: Its name.
        verdict: Whether the contract holds.
        message: The failure, or why the check was skipped.
        notes: What it said beside that.
        seconds: What it took.
    """

    check: str
    verdict: Literal["passed", "failed", "skipped"]
    message: str
    notes: tuple[str, ...]
    seconds: float


def run_checks(suite: type[Conformance]) -> Iterator[Outcome]:
    """Run every check of a class and yield what it came to.

    An exception of the code under test is a failure of the check; `LowbitError` from the kit is, too.
    """
    for name in suite.checks():
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            verdict, message = _run(suite, name)
        told = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, ConformanceNote))
        yield Outcome(name, verdict, message, tuple(told), time.perf_counter() - started)


def _run(suite: type[Conformance], name: str) -> tuple[Literal["passed", "failed", "skipped"], str]:
    try:
        getattr(suite(), name)()
    except SkipTest as skip:
        return "skipped", str(skip)
    except (AssertionError, LowbitError) as error:
        return "failed", str(error)
    except ANY_ERROR as error:  # whatever the code under test raises
        return "failed", f"expected: no exception\ngot: {type(error).__name__}: {error}"
    return "passed", ""
