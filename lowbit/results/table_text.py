"""Names and texts of others in tables: nothing in them is read as a mark or a formula."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lowbit.untrusted import printable

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NOTHING = "-"


def escape_markdown(text: str) -> str:
    """Return text on one line, with every character that Markdown reads as a mark written so that it shows."""
    return re.sub(r"([\\|*_<>`&~]|\](?=[(\[:]))", r"\\\1", printable(" ".join(text.split())))


def csv_row(values: Iterable[object]) -> list[object]:
    """Return a line of CSV: an apostrophe before text that a spreadsheet takes for a formula, no control characters."""
    return [_cell(value) for value in values]


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if _is_formula(value) else printable(value)


def _is_formula(value: object) -> bool:
    return isinstance(value, str) and value.startswith(_FORMULA) and value != _NOTHING
