"""Sums up the numbers of many layers, before and after training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def summarize_layers(layers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean of every diagnostic over the layers, each layer counting by its number of weights.

    A number that only some layers have is the mean over those.

    Args:
        layers: Reports of layers, each with `weights`, `diagnostics` and `untrained`.

    Returns:
        `before`: of what training started from; `after`: of what it ended with.
    """
    return {
        "before": _means((layer["weights"], layer["untrained"]) for layer in layers),
        "after": _means((layer["weights"], layer["diagnostics"]) for layer in layers),
    }


def _means(found: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    weights: dict[str, int] = {}
    for size, numbers in found:
        for name, number in numbers.items():
            totals[name] = totals.get(name, 0.0) + size * number
            weights[name] = weights.get(name, 0) + size
    return {name: total / weights[name] for name, total in totals.items()}
