"""Says at once what to install when the packages that a report needs are missing."""

from __future__ import annotations

from importlib.util import find_spec

from lowbit.errors import LowbitError

PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}
"""Module -> the distribution that brings it."""


def require_packages() -> None:
    """Check that everything a report is made with is there.

    Raises:
        LowbitError: A package is missing; the message says how to install it.
    """
    missing = [distribution for module, distribution in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise LowbitError(
            f"a report needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'lowbit[report]'"
        )
