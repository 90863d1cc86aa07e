"""Names and texts of others in tables: nothing in them is read as a mark or a formula."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NOTHING = "-"


def escape_markdown(text: str) -> str:
    """Return text on one line, with every character that Markdown reads as a mark written so that it shows."""
    return re.sub(r"([\\|*_<>`])", r"\\\1", " ".join(text.split()))


def csv_row(values: Iterable[object]) -> list[object]:
    """Return a line of CSV: an apostrophe before text that a spreadsheet would take for a formula."""
    return [f"'{value}" if _is_formula(value) else value for value in values]


def _is_formula(value: object) -> bool:
    return isinstance(value, str) and value.startswith(_FORMULA) and value != _NOTHING
