"""What a run says of each layer, laid out for heat maps: kind of layer against block, compact enough for many runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.report.numbers import finite, rounded
from lowbit.results.store import StoredResult

RELATIVE_ERROR = "relative_error"
BEFORE_TRAINING = " before training"
OUTSIDE = -1
"""The block of a layer that belongs to none, such as the head."""
_BLOCK = re.compile(r"(?:^|\.)(\d{1,9})\.")


def place_of(name: str) -> tuple[int, str]:
    """Return the block and the kind of a layer: `model.layers.3.mlp.up_proj` is `(3, "mlp.up_proj")`.

    Further numbers, as those of experts, are left out of the kind.
    """
    found = _BLOCK.search(name)
    if found is None:
        return OUTSIDE, name
    kind = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name[found.end() :])
    return int(found.group(1)), kind


def layer_data(result: StoredResult) -> dict[str, Any] | None:
    """Return the numbers of each kind and block; layers that share both (experts) are averaged by weights.

    Returns:
        `kinds` and `blocks`, the rows and columns; `at`, `[kind, block]` of each cell; `count`, layers in each cell;
        `values`, name -> one number a cell, or a single number where all cells have the same. `None` without layers.
    """
    layers = [layer for layer in result.lowbit.get("layers") or () if isinstance(layer, Mapping) and "name" in layer]
    if not layers:
        return None
    cells: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for layer in layers:
        block, kind = place_of(str(layer["name"]))
        cells.setdefault((kind, block), []).append(layer)
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    blocks = sorted({block for _, block in cells})
    numbers = [[_numbers(layer) for layer in members] for members in cells.values()]
    sizes = [[finite(layer.get("weights")) or 1.0 for layer in members] for members in cells.values()]
    names = dict.fromkeys(name for members in numbers for one in members for name in one)
    values = {}
    for name in names:
        column = [_mean(members, weights, name) for members, weights in zip(numbers, sizes, strict=True)]
        if any(value is not None for value in column):
            values[name] = column[0] if len(set(column)) == 1 else column
    rows, columns = ({name: n for n, name in enumerate(several)} for several in (kinds, blocks))
    at = [[rows[kind], columns[block]] for kind, block in cells]
    counts = [len(members) for members in cells.values()]
    return {"kinds": kinds, "blocks": blocks, "at": at, "count": counts, "values": values}


def why_no_layers(result: StoredResult) -> str:
    """Say why a run has no numbers of layers."""
    if result.role == "parent":
        return "This is an unquantized parent: it has no quantized layers."
    if result.role == "other":
        return "This file was written by lm-eval alone: it says nothing about quantized layers."
    return "This run recorded no numbers of single layers."


def cells_of(data: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the rows that the heat map of one number is drawn from."""
    values = data["values"][name]
    column: Sequence[float | None] = values if isinstance(values, list) else [values] * len(data["at"])
    return [
        {
            "kind": data["kinds"][kind],
            "block": "none" if data["blocks"][block] == OUTSIDE else str(data["blocks"][block]),
            "value": value,
            "layers": count,
        }
        for (kind, block), value, count in zip(data["at"], column, data["count"], strict=True)
        if value is not None
    ]


def _numbers(layer: Mapping[str, Any]) -> dict[str, float]:
    """Return everything measured of one layer: the error, the nominal bits, then the diagnostics by name."""
    found: dict[str, Any] = {RELATIVE_ERROR: layer.get("relative_error"), "nominal_bits": layer.get("nominal_bits")}
    diagnostics = layer.get("diagnostics") or {}
    untrained = layer.get("untrained") or {}
    for name in sorted(diagnostics, key=_rank):
        found[name] = diagnostics[name]
        if name in untrained and untrained[name] != diagnostics[name]:
            found[f"{name}{BEFORE_TRAINING}"] = untrained[name]
    return {name: number for name, value in found.items() if (number := finite(value)) is not None}


def _rank(name: str) -> tuple[bool, str]:
    return "density" not in name, name


def _mean(members: Sequence[Mapping[str, float]], weights: Sequence[float], name: str) -> float | None:
    known = [(one[name], weight) for one, weight in zip(members, weights, strict=True) if name in one]
    total = sum(weight for _, weight in known)
    return rounded(sum(value * weight for value, weight in known) / total) if total else None
