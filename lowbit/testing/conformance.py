"""`Conformance`: what the classes of the kit share: their checks, which are skipped, and who collects them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn
from unittest import SkipTest

from lowbit.testing.failure import ConformanceError

PREFIX = "test_"


class Conformance:
    """The checks of one contract; a subclass names what is checked.

    Every method whose name starts with `test_` is a check. It takes no argument, returns nothing when the contract
    holds, raises `ConformanceError` when it does not, and `unittest.SkipTest` with a reason when there is nothing to
    check. A test runner collects a subclass and leaves the kit's own classes alone.

    Args:
        skips: Names of checks that are not run, each with the reason.
    """

    __test__ = False
    skips: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The kit's own classes are no tests when they are merely imported into a test module.
        if "__test__" not in cls.__dict__:
            cls.__test__ = not cls.__module__.startswith(f"{__package__}.")
        known = cls.checks()
        for name, reason in cls.skips.items():
            if name in known and name != "test_skips_name_checks_and_give_reasons" and reason.strip():
                setattr(cls, name, _skipped(reason))

    @classmethod
    def checks(cls) -> tuple[str, ...]:
        """Return the names of the checks, in alphabetical order."""
        return tuple(name for name in sorted(dir(cls)) if name.startswith(PREFIX) and callable(getattr(cls, name)))

    def test_skips_name_checks_and_give_reasons(self) -> None:
        """A check is left out for a reason that can be read, and under a name that exists."""
        for name, reason in self.skips.items():
            if name not in self.checks():
                raise ConformanceError(
                    "every name in `skips` is one of a check",
                    f"{name!r}, which is none",
                    f"sorted({type(self).__name__}.checks())",
                )
            if not reason.strip():
                raise ConformanceError(
                    "every check in `skips` has a reason",
                    f"none for {name!r}",
                    f"{type(self).__name__}.skips[{name!r}]",
                )


def _skipped(reason: str) -> Callable[[Conformance], NoReturn]:
    def skip(self: Conformance) -> NoReturn:
        raise SkipTest(reason)

    return skip
