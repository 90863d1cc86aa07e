"""The values of a leaderboard: means over seeds and tasks, with footnotes where they are not all of one kind."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lowbit.results.leaderboard_columns import (
    MEAN_ACCURACY,
    NUMBERS,
    RECOVERY,
    TEXTS,
    Column,
    Measurement,
)
from lowbit.results.store import StoredResult

Runs = Literal["mean", "latest", "all"]
OTHER_SEEDS = "few-shot examples were drawn by several seeds: "


@dataclass(frozen=True)
class Cell:
    """One value of a row.

    Args:
        value: A number or a text; `None` where there is none.
        deviation: Standard deviation over seeds; `None` for fewer than two.
        seeds: How many seeds the number is a mean of.
        notes: Numbers of footnotes.
        ranked: Whether it competes for the best value.
    """

    value: float | str | None
    deviation: float | None = None
    seeds: int = 0
    notes: tuple[int, ...] = ()
    ranked: bool = True


@dataclass
class Sources:
    """What cells are made of while a table is built."""

    measured: Mapping[str, Sequence[Measurement]]
    primary: Sequence[Column]
    runs: Runs
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> tuple[int, ...]:
        """Return the number of a footnote, which is a new one if need be."""
        if text not in self.notes:
            self.notes.append(text)
        return (self.notes.index(text) + 1,)


def make_cell(column: Column, runs: Sequence[StoredResult], label: str, sources: Sources) -> Cell:
    """Return a row's value in a column.

    Args:
        column: The column.
        runs: The row's runs, oldest first.
        label: What the row is called.
        sources: Measurements, and where footnotes go.
    """
    if column.key == "method":
        return Cell(label)
    if column.key in TEXTS:
        return Cell(TEXTS[column.key](runs))
    if column.key in NUMBERS:
        read = NUMBERS[column.key][1]
        cell = _mean_over_seeds([(r, number) for r in runs if (number := _number(read(r))) is not None], sources)
        return Cell(cell.value, seeds=1) if cell.deviation == 0 else cell
    if column.key in (RECOVERY, MEAN_ACCURACY):
        return _mean_over_tasks(column, runs, sources)
    found = _measured(column, runs, sources)
    cell = _recovered(found, sources)
    if not column.of_recovery:
        cell = _mean_over_seeds([(run, one.metric.value) for run, one in found], sources)
    shots = sorted({one.fewshot_seed for _, one in found if one.fewshot_seed is not None})
    return cell if len(shots) < 2 else replace(cell, notes=(*cell.notes, *sources.note(OTHER_SEEDS + ", ".join(shots))))


def _recovered(found: Sequence[tuple[StoredResult, Measurement]], sources: Sources) -> Cell:
    """Average recovery over seeds; where a seed's value is not finite, a footnote says so and nothing is ranked."""
    # What a run without its parent's value says nothing of, an earlier run of that seed may say.
    known = [(run, one.recovery) for run, one in found if one.recovery is not None or not _is_finite(one)]
    latest = {run.seed if sources.runs == "mean" else None: percent for run, percent in known}
    lost = {seed for seed, percent in latest.items() if percent is None}
    key = (lambda run: run.seed) if sources.runs == "mean" else (lambda run: None)
    cell = _mean_over_seeds([(run, p) for run, p in known if p is not None and key(run) not in lost], sources)
    if not lost or cell.value is None:
        return cell
    text = f"recovery of {len(latest) - len(lost)} of {len(latest)} seeds: the others are not finite"
    return replace(cell, notes=(*cell.notes, *sources.note(text)), ranked=False)


def _is_finite(one: Measurement) -> bool:
    return math.isfinite(one.metric.value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _measured(column: Column, runs: Sequence[StoredResult], sources: Sources) -> list[tuple[StoredResult, Measurement]]:
    """Return what runs measured of a metric under the column's protocol."""
    return [
        (run, one)
        for run in runs
        for one in sources.measured.get(str(run.path), ())
        if (one.metric.task, one.metric.key, one.settings) == (column.task, column.metric_key, column.settings)
    ]


def _mean_over_seeds(values: Sequence[tuple[StoredResult, float]], sources: Sources) -> Cell:
    """Average the latest value of each seed; of a parent, and where runs are not averaged, the latest value counts."""
    if not values:
        return Cell(None)
    if sources.runs != "mean":
        return Cell(values[-1][1], seeds=1)
    by_seed = {run.seed: value for run, value in values}
    numbers = list(by_seed.values())
    if len(numbers) == 1:
        return Cell(numbers[0], seeds=1)
    if not all(math.isfinite(number) for number in numbers):
        if any(math.isnan(number) for number in numbers):  # It has no place in an order, so that there is no median.
            return Cell(math.nan, seeds=len(numbers), notes=sources.note("a seed is not a number"))
        return Cell(statistics.median(numbers), seeds=len(numbers), notes=sources.note("median: a seed is not finite"))
    return Cell(statistics.fmean(numbers), statistics.stdev(numbers), len(numbers))


def _mean_over_tasks(column: Column, runs: Sequence[StoredResult], sources: Sources) -> Cell:
    """Average recovery or accuracy over the tasks that a row has; a footnote says which, unless it is clear."""
    of_recovery = column.key == RECOVERY
    parts: dict[str, tuple[Column, Cell]] = {}
    offered = [c for c in sources.primary if of_recovery or c.metric_key.startswith("acc")]
    for one in offered:
        found = make_cell(replace(one, of_recovery=of_recovery), runs, "", sources)
        # Of a task that was asked in several ways the most frequent one that the row has counts.
        if isinstance(found.value, float) and math.isfinite(found.value) and one.task is not None:
            parts.setdefault(one.task, (one, found))
    if not parts:
        return Cell(100.0 if of_recovery and runs[-1].role == "parent" else None)
    per_run = []
    for run in runs:
        values = [_value(one, run, of_recovery, sources) for one, _ in parts.values()]
        known = [value for value in values if value is not None]
        if len(known) == len(parts):
            per_run.append((run, statistics.fmean(known)))
    # Where no run has all of the tasks, there is no mean of one seed that could deviate.
    mean = statistics.fmean(found.value for _, found in parts.values() if isinstance(found.value, float))
    cell = _mean_over_seeds(per_run, sources) if per_run else Cell(mean, seeds=1)
    lost = [found.notes for _, found in parts.values() if not found.ranked]
    if lost:
        cell = replace(cell, notes=tuple(sorted({number for notes in lost for number in notes})), ranked=False)
    if len(parts) < len({one.task for one in offered}) or any(one.variant for one, _ in parts.values()):
        named = [f"{task}{f' [{one.variant}]' if one.variant else ''}" for task, (one, _) in parts.items()]
        return replace(cell, notes=(*cell.notes, *sources.note(f"{column.title} is the mean over {', '.join(named)}")))
    return cell


def _value(part: Column, run: StoredResult, of_recovery: bool, sources: Sources) -> float | None:
    found = _measured(part, [run], sources)
    if not found:
        return None
    return found[-1][1].recovery if of_recovery else found[-1][1].metric.value
