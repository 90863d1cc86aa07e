"""The learning curves of a run, thinned to what a plot can show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.report.numbers import finite, rounded, thinned
from lowbit.results.store import StoredResult

POINTS_OF_A_MODEL = 300
POINTS_OF_A_BLOCK = 60


def training_data(result: StoredResult) -> dict[str, Any] | None:
    """Return the curves of a trained run; `None` without training.

    Returns:
        `losses` and `held_out`, points `[step, loss]` of training the whole model; `blocks`, one list of points a
        block of training block by block, each starting at step 1.
    """
    training = result.lowbit.get("training")
    if not isinstance(training, Mapping):
        return None
    whole = training.get("distillation") or {}
    blocks = [_points(block.get("losses"), POINTS_OF_A_BLOCK) for block in training.get("reconstruction") or ()]
    held_out = _held_out(whole.get("held_out"))
    data = {"losses": _points(whole.get("losses"), POINTS_OF_A_MODEL), "held_out": held_out, "blocks": blocks}
    return data if data["losses"] or data["held_out"] or any(blocks) else None


def model_points(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that the plot of training the whole model is drawn from."""
    named = (("training", data["losses"]), ("held out", data["held_out"]))
    return [{"curve": name, "step": step, "loss": loss} for name, points in named for step, loss in points]


def block_points(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that the plot of training block by block is drawn from."""
    return [
        {"block": number, "step": step, "loss": loss}
        for number, points in enumerate(data["blocks"])
        for step, loss in points
    ]


def why_no_training(result: StoredResult) -> str:
    """Say why a run has no learning curve."""
    if result.role == "parent":
        return "This is an unquantized parent: nothing was trained."
    if result.role == "other":
        return "This file was written by lm-eval alone: it says nothing about training."
    return "This method quantizes without training: there is no learning curve."


def _held_out(points: Any) -> list[list[float | None]]:
    """Return the points that are a step and a loss."""
    found = []
    for point in points or ():
        step, loss = map(finite, point) if point is not None and len(point) == 2 else (None, None)
        if step is not None and loss is not None:
            found.append([int(step), rounded(loss, 5)])
    return found


def _points(losses: Any, most: int) -> list[list[float | None]]:
    if not isinstance(losses, list):
        return []
    numbers = [float(loss) for loss in losses if isinstance(loss, int | float)]
    return [[step, rounded(loss, 5)] for step, loss in thinned(numbers, most)]
