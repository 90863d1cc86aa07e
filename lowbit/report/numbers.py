"""Numbers as a reader sees them, and as JSON carries them."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"  # noqa: RUF001 (an en dash is what a table shows for an empty cell)
_LARGE = 10_000.0


def finite(value: Any) -> float | None:
    """Return a finite number as float; `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def rounded(value: Any, digits: int = 4) -> float | None:
    """Return a number with so many significant digits; `None` for anything that is no finite number."""
    number = finite(value)
    return None if number is None else float(f"{number:.{digits}g}")


def number_text(value: Any, digits: int) -> str:
    """Return a number with so many digits behind the point; large ones with an exponent, missing ones as a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2e}" if abs(value) >= _LARGE and digits else f"{value:,.{digits}f}"


def bytes_text(value: Any) -> str:
    """Return a size in decimal units: 1.44 MB."""
    number = finite(value)
    if number is None:
        return MISSING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} bytes"


def thinned(values: list[float], most: int) -> list[tuple[int, float]]:
    """Return a curve as at most so many points, each the mean of a stretch, at the stretch's last step (from 1)."""
    if not values:
        return []
    stretch = max(1, math.ceil(len(values) / most))
    points = []
    for start in range(0, len(values), stretch):
        part = [value for value in values[start : start + stretch] if math.isfinite(value)]
        if part:
            points.append((min(start + stretch, len(values)), sum(part) / len(part)))
    return points
