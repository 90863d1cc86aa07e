"""The leaderboard of a report: one row a run, one column a metric under one protocol."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowbit.report.numbers import MISSING, bytes_text, finite, number_text
from lowbit.results.leaderboard_columns import Column, Measurement, measurements, metric_columns, primary_columns
from lowbit.results.protocol import model_protocol, recipe_of_checkpoint
from lowbit.results.store import StoredResult
from lowbit.results.task_groups import tasks_inside_groups

NOT_COMPARED = frozenset({"backend"})


@dataclass(frozen=True)
class TableColumn:
    """One column.

    Args:
        key: Its name in the page.
        title: What stands above it.
        note: The protocol that sets it apart, or what it means; shown below the title.
        numeric: Whether it sorts as numbers.
        higher_is_better: Its direction; `None` where there is no better and worse.
        shown: Whether it is seen before the reader chooses.
        metric: Whether it can be the vertical axis of the plot.
    """

    key: str
    title: str
    note: str = ""
    numeric: bool = True
    higher_is_better: bool | None = None
    shown: bool = True
    metric: bool = False

    @property
    def arrow(self) -> str:
        """Where better lies."""
        return "" if self.higher_is_better is None else "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True)
class TableCell:
    """One value: its text, what it sorts by (`None` comes last), and a smaller second text."""

    text: str
    sort: float | str | None
    small: str = ""


@dataclass(frozen=True)
class TableRow:
    """One run: the result, its method's settings that other runs lack, how it was run, and its cells."""

    result: StoredResult
    settings: str
    run_with: str
    cells: tuple[TableCell, ...]

    @property
    def bits(self) -> Mapping[str, Any]:
        """The bits report; empty where there is none."""
        return self.result.bits or {}


@dataclass(frozen=True)
class ReportTable:
    """The whole table."""

    columns: tuple[TableColumn, ...]
    rows: tuple[TableRow, ...]

    @property
    def metrics(self) -> tuple[TableColumn, ...]:
        """The columns that can be the plot's vertical axis."""
        return tuple(column for column in self.columns if column.metric)

    def value(self, row: TableRow, column: TableColumn) -> float | None:
        """Return a finite number of a row; `None` where it has none."""
        return finite(row.cells[self.columns.index(column)].sort)


FIXED = (
    TableColumn("method", "method", numeric=False),
    TableColumn("model", "model", numeric=False),
    TableColumn("seed", "seed"),
    TableColumn("nominal", "bits nominal", "codes only"),
    TableColumn("linear", "bits linear", "with scales"),
    TableColumn("file", "bits file", "whole file"),
    TableColumn("bytes", "file size"),
)
LAST = (
    TableColumn("seconds", "quantize s", higher_is_better=False),
    TableColumn("memory", "peak memory", shown=False),
    TableColumn("date", "date (UTC)", numeric=False),
    TableColumn("identity", "run", "for `lowbit compare`", numeric=False),
)


def build_table(results: Sequence[StoredResult]) -> ReportTable:
    """Make the table; rows are grouped by model, parents first, then the best in the first metric."""
    measured = measurements(results)
    offered = metric_columns(measured)
    parts = tasks_inside_groups(results)
    primary = {column for several in primary_columns(offered).values() for column in several}
    metrics = [column for several in offered.values() for column in several]
    metrics.sort(key=lambda column: (column not in primary or column.task in parts, column.higher_is_better is True))
    tasks = [
        _metric_column(column, offered[column.key], column in primary and column.task not in parts)
        for column in metrics
    ]
    accurate = [column for column in metrics if column in primary and column.task not in parts and _is_accuracy(column)]
    means = _means(results, accurate, measured)
    ways = _run_with(results)
    way = (TableColumn("run_with", "run with", "settings not alike in all runs", numeric=False),) if any(ways) else ()
    several = len({result.model for result in results}) > 1
    fixed = tuple(replace(column, shown=several) if column.key == "model" else column for column in FIXED)
    columns = (*fixed, *way, *tasks, *(column for column, _ in means), *LAST)
    rows = []
    for result, settings, run_with in zip(results, _settings(results), ways, strict=True):
        found = [_metric_cell(result, column, measured) for column in metrics]
        mean = [_mean_cell(values.get(str(result.path))) for _, values in means]
        told = [TableCell(run_with or MISSING, run_with)] if way else []
        rows.append(
            TableRow(result, settings, run_with, (*_first(result, settings), *told, *found, *mean, *_last(result)))
        )
    return ReportTable(columns, tuple(_ordered(rows, columns)))


def _ordered(rows: list[TableRow], columns: Sequence[TableColumn]) -> list[TableRow]:
    position = next((number for number, column in enumerate(columns) if column.metric and column.shown), None)
    sign = -1.0 if position is not None and columns[position].higher_is_better else 1.0

    def rank(row: TableRow) -> tuple[str, bool, bool, float]:
        value = None if position is None else finite(row.cells[position].sort)
        return row.result.model, row.result.role != "parent", value is None, sign * (value or 0.0)

    return sorted(rows, key=rank)


def _metric_column(column: Column, alternatives: Sequence[Column], shown: bool) -> TableColumn:
    """Return a metric's column; where one metric was asked in several ways, the note says in what this one differs."""
    every = [dict(one.settings) for one in alternatives]
    names = [name for name in dict.fromkeys(n for s in every for n in s) if len({s.get(name) for s in every}) > 1]
    own = dict(column.settings)
    note = ", ".join(f"{name} {own.get(name, 'not given')}" for name in names)
    letter = f" [{column.variant}]" if column.variant else ""
    key = f"{column.key} {column.variant}".strip()
    return TableColumn(key, f"{column.title}{letter}", note, True, column.higher_is_better, shown, metric=True)


def _metric_cell(result: StoredResult, column: Column, measured: Mapping[str, Sequence[Measurement]]) -> TableCell:
    for one in measured.get(str(result.path), ()):
        if (one.metric.task, one.metric.key, one.settings) != (column.task, column.metric_key, column.settings):
            continue
        text = number_text(one.metric.value, column.digits)
        if one.metric.stderr is not None and finite(one.metric.stderr) is not None:
            text += f" ±{one.metric.stderr:.{column.digits}f}"
        small = "" if one.recovery is None else f"{one.recovery:.1f} % of parent"
        value = one.metric.value
        return TableCell(text, None if value != value else value, small)
    return TableCell(MISSING, None)


def _is_accuracy(column: Column) -> bool:
    return column.metric_key.startswith("acc") or column.metric_key.startswith("exact_match")


def _means(
    results: Sequence[StoredResult], accurate: Sequence[Column], measured: Mapping[str, Sequence[Measurement]]
) -> list[tuple[TableColumn, dict[str, float]]]:
    """Return a column of mean accuracy for each set of tasks and protocols that runs have, the most frequent first."""
    sets: dict[tuple[Column, ...], dict[str, float]] = {}
    for result in results:
        found = {column: finite(_metric_cell(result, column, measured).sort) for column in accurate}
        known = tuple(column for column in accurate if found[column] is not None)
        if len(known) > 1:
            values = [value for column in known if (value := found[column]) is not None]
            sets.setdefault(known, {})[str(result.path)] = statistics.fmean(values)
    columns = []
    for number, (known, by_path) in enumerate(sorted(sets.items(), key=lambda pair: -len(pair[1]))):
        names = ", ".join(f"{column.task}{f' [{column.variant}]' if column.variant else ''}" for column in known)
        key = f"mean accuracy {number}"
        columns.append((TableColumn(key, "mean accuracy", f"of {names}", True, True, number == 0, True), by_path))
    return columns


def _mean_cell(value: float | None) -> TableCell:
    return TableCell(number_text(value, 4), value)


def _first(result: StoredResult, settings: str) -> Iterable[TableCell]:
    bits = result.bits or {}
    yield TableCell(result.method, result.method.lower(), settings)
    yield TableCell(result.model, result.model.lower())
    yield TableCell(MISSING if result.seed is None else str(result.seed), result.seed)
    for key in ("nominal_bits", "quantized_bits", "whole_file_bits"):
        yield TableCell(number_text(bits.get(key), 2), finite(bits.get(key)))
    yield TableCell(bytes_text(bits.get("file_bytes")), finite(bits.get("file_bytes")))


def _last(result: StoredResult) -> Iterable[TableCell]:
    cost = result.lowbit.get("cost") or {}
    yield TableCell(number_text(cost.get("seconds"), 1), finite(cost.get("seconds")))
    memory = cost.get("peak_device_memory_bytes") or cost.get("peak_memory_bytes")
    yield TableCell(bytes_text(memory), finite(memory))
    yield TableCell(result.date.strftime("%Y-%m-%d %H:%M"), result.date.isoformat())
    yield TableCell(result.identity, result.identity)


def _run_with(results: Sequence[StoredResult]) -> list[str]:
    """Return how each run was made where runs were not made alike: context length, number type, prompts' form."""
    ways = [{name: value for name, value in model_protocol(one) if name not in NOT_COMPARED} for one in results]
    names = [name for name in dict.fromkeys(n for way in ways for n in way) if len({w.get(name) for w in ways}) > 1]
    return [", ".join(f"{name} {way.get(name, 'not given')}" for name in names) for way in ways]


def _settings(results: Sequence[StoredResult]) -> list[str]:
    """Return for each run the settings of its recipe in which runs of its method differ."""
    flat = [dict(_flatten(recipe_of_checkpoint(result))) for result in results]
    by_method: dict[str, list[dict[str, str]]] = {}
    for result, own in zip(results, flat, strict=True):
        by_method.setdefault(result.method, []).append(own)
    differing = {
        method: [key for key in {k: None for one in several for k in one} if len({o.get(key) for o in several}) > 1]
        for method, several in by_method.items()
    }
    return [
        ", ".join(f"{key.rpartition('.')[2]}={own[key]}" for key in differing[result.method] if key in own)
        for result, own in zip(results, flat, strict=True)
    ]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(item)
