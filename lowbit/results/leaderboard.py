"""The leaderboard of a results directory: runs of one recipe in one row, grouped by model, parents first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowbit.results.leaderboard_cells import Cell, Runs, Sources, make_cell
from lowbit.results.leaderboard_columns import (
    MEAN_ACCURACY,
    RECOVERY,
    Column,
    available_names,
    choose_columns,
    default_names,
    measurements,
    metric_columns,
    primary_columns,
)
from lowbit.results.protocol import family, model_protocol, parent_key, recipe_of_checkpoint
from lowbit.results.store import StoredResult
from lowbit.results.task_groups import tasks_inside_groups


@dataclass(frozen=True)
class LeaderboardRow:
    """The runs of one recipe.

    Args:
        label: The method, with what sets it apart from other rows of that method.
        runs: Its runs, oldest first.
        is_parent: Whether it is the unquantized model.
        cells: One a column.
    """

    label: str
    runs: tuple[StoredResult, ...]
    is_parent: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ModelGroup:
    """The rows of one model.

    Args:
        model: Its name.
        rows: Parents first, the others in order.
        best: For each column the positions of the rows with the best value, and those with the second best.
    """

    model: str
    rows: tuple[LeaderboardRow, ...]
    best: tuple[tuple[frozenset[int], frozenset[int]], ...]


@dataclass(frozen=True)
class Leaderboard:
    """A whole table.

    Args:
        columns: Its columns.
        groups: One a model.
        notes: The texts of the footnotes, of which the first has the number 1.
        protocols: What the columns' letters stand for, and how models were run where they were not run alike.
    """

    columns: tuple[Column, ...]
    groups: tuple[ModelGroup, ...]
    notes: tuple[str, ...]
    protocols: tuple[str, ...]


def build_leaderboard(
    results: Sequence[StoredResult], columns: Sequence[str] = (), sort: str | None = None, runs: Runs = "mean"
) -> Leaderboard:
    """Make a leaderboard.

    Args:
        results: What `read_results` found.
        columns: Names of columns; none means the method, bits, the first metric of each task and recovery.
        sort: The column that decides the order within a model, best first; a `-` before it turns the order round.
            `None`: the first column that has a better and a worse.
        runs: What becomes of several runs of one recipe: `mean` averages over seeds, the latest run of each seed;
            `latest` shows the latest run; `all` gives every run its own row.

    Raises:
        LowbitError: A column is unknown.
    """
    measured = measurements(results)
    offered = metric_columns(measured)
    parts = tasks_inside_groups(results)
    chosen = choose_columns(list(columns) or default_names(offered, parts), offered)
    order = None if sort is None else choose_columns([sort.removeprefix("-")], offered)[0]
    primary = [c for task, several in primary_columns(offered).items() if task not in parts for c in several]
    sources = Sources(measured, primary, runs)
    groups = []
    for model, members in _by_model(results).items():
        rows = _rows(members, chosen, order, sources)
        ordered = _ordered(rows, chosen, order, reverse=(sort or "").startswith("-"))
        groups.append(ModelGroup(model, tuple(ordered), tuple(_best(ordered, chosen))))
    protocols = (*_letters(chosen), *_ways_of_running(groups))
    return Leaderboard(tuple(chosen), tuple(groups), tuple(sources.notes), protocols)


def column_names(results: Sequence[StoredResult]) -> list[str]:
    """Return every name of a column that these results offer."""
    return available_names(metric_columns(measurements(results)))


def _by_model(results: Sequence[StoredResult]) -> dict[str, list[StoredResult]]:
    """Return the results of each parent, by a name that no other parent has."""
    names: dict[str, Counter[str]] = {}
    for result in results:
        known = bool((result.lowbit.get("parent") or {}).get("name"))
        names.setdefault(parent_key(result), Counter())[result.model] += 1000 if known else 1
    called = {key: counts.most_common(1)[0][0] for key, counts in names.items()}
    # lm-eval's own files do not say which files they are of; where one model has that name, they join it.
    hashed: dict[str, list[str]] = {}
    for key, name in called.items():
        if key != name:
            hashed.setdefault(name, []).append(key)
    grouped: dict[str, list[StoredResult]] = {}
    for result in results:
        key = parent_key(result)
        name = called[key]
        same = hashed.get(name, [])
        title = f"{name} ({key[:8]})" if len(same) > 1 and key in same else name
        grouped.setdefault(title, []).append(result)
    return grouped


def _rows(
    results: Sequence[StoredResult], columns: Sequence[Column], order: Column | None, sources: Sources
) -> list[LeaderboardRow]:
    """Return the rows of one model; the cell that decides the order is the last one of each."""
    families: dict[str, list[StoredResult]] = {}
    for result in results:
        key = str(result.path) if sources.runs == "all" else family(result)
        families.setdefault(key, []).append(result)
    several = [tuple(members) for members in families.values()]
    rows = []
    for members, label in zip(several, _labels(several, sources.runs), strict=True):
        shown = members
        if sources.runs == "latest":  # Every column of the same seed.
            shown = tuple(run for run in members if run.seed == members[-1].seed)
        wanted = [*columns, *([] if order is None else [order])]
        cells = tuple(make_cell(column, shown, label, sources) for column in wanted)
        rows.append(LeaderboardRow(label, members, members[-1].role == "parent", cells))
    return rows


def _labels(rows: Sequence[tuple[StoredResult, ...]], runs: Runs) -> list[str]:
    """Return each row's method, with the settings in which rows of that method differ."""
    settings = [_flat_settings(members[-1], runs) for members in rows]
    labels = []
    for members, own in zip(rows, settings, strict=True):
        method = members[-1].method
        rivals = [s for others, s in zip(rows, settings, strict=True) if others[-1].method == method]
        differing = [
            key for key in {k: None for rival in rivals for k in rival} if len({r.get(key) for r in rivals}) > 1
        ]
        told = [f"{_short(key, differing)}={own[key]}" for key in differing if own.get(key) is not None]
        labels.append(f"{method} ({', '.join(told)})" if told else method)
    return labels


def _flat_settings(result: StoredResult, runs: Runs) -> dict[str, str]:
    flat = dict(_flatten(recipe_of_checkpoint(result)))
    flat.update(model_protocol(result))
    if runs == "all":
        flat["run"] = result.identity
        if result.seed is not None:
            flat["seed"] = str(result.seed)
    return flat


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{name}.")
        elif name != "method":
            yield name, str(item)


def _short(key: str, keys: Sequence[str]) -> str:
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _ordered(
    rows: Sequence[LeaderboardRow], columns: Sequence[Column], order: Column | None, reverse: bool
) -> list[LeaderboardRow]:
    """Put parents first and the others by a column, best first; rows without a value come last."""
    if order is None:
        position = next((i for i, column in enumerate(columns) if column.higher_is_better is not None), 0)
        column = columns[position]
    else:
        position, column = len(columns), order

    def rank(row: LeaderboardRow) -> tuple[bool, bool, float, str]:
        value = row.cells[position].value
        if isinstance(value, str) or value is None or math.isnan(value):
            return not row.is_parent, value is None or not isinstance(value, str), 0.0, str(value)
        sign = -1 if bool(column.higher_is_better) != reverse else 1
        return not row.is_parent, False, sign * value, ""

    parents = [row for row in sorted(rows, key=rank) if row.is_parent]
    others = [row for row in sorted(rows, key=rank) if not row.is_parent]
    if isinstance(rows[0].cells[position].value, str) and reverse:
        others.reverse()
    return [replace(row, cells=row.cells[: len(columns)]) for row in (*parents, *others)]


def _best(rows: Sequence[LeaderboardRow], columns: Sequence[Column]) -> Iterable[tuple[frozenset[int], frozenset[int]]]:
    """Yield for each column which rows have the best value and which the second best, as far as digits are shown."""
    for position, column in enumerate(columns):
        shown: dict[int, float] = {}
        # Means over other tasks do not compete with those that most rows have.
        cells = [row.cells[position] for row in rows if not row.is_parent]
        kinds = Counter(cell.notes for cell in cells if cell.seeds and cell.ranked)
        usual = kinds.most_common(1)[0][0] if kinds and column.key in (RECOVERY, MEAN_ACCURACY) else None
        for number, row in enumerate(rows):
            value = row.cells[position].value
            if column.higher_is_better is None or row.is_parent or not row.cells[position].ranked:
                continue
            if usual is not None and row.cells[position].notes != usual:
                continue
            if isinstance(value, float) and not math.isnan(value):
                shown[number] = round(value, column.digits)
        ranked = sorted(set(shown.values()), reverse=bool(column.higher_is_better))
        places = [frozenset(n for n, value in shown.items() if value == wanted) for wanted in ranked[:2]]
        yield (places[0] if places else frozenset(), places[1] if len(places) > 1 else frozenset())


def _letters(columns: Sequence[Column]) -> Iterable[str]:
    """Yield what each letter in a column's title stands for: what differs between protocols of that metric."""
    by_title: dict[str, list[Column]] = {}
    for column in columns:
        if column.variant and not column.of_recovery:
            by_title.setdefault(column.title, []).append(column)
    for title, several in by_title.items():
        every = [dict(column.settings) for column in several]
        names = [name for name in dict.fromkeys(n for s in every for n in s) if len({s.get(name) for s in every}) > 1]
        if len({settings.get("documents") for settings in every}) == len(every):
            names = [name for name in names if name != "data"]  # Their hashes say no more than their numbers do.
        for column, settings in zip(several, every, strict=True):
            told = ", ".join(f"{name} {settings.get(name, 'not given')}" for name in names or settings)
            yield f"{title} [{column.variant}]: {told}"


def _ways_of_running(groups: Sequence[ModelGroup]) -> Iterable[str]:
    """Yield how each model was run, where models were not all run alike; within a model, rows say so themselves."""
    ways = {group.model: Counter(_way(row) for row in group.rows) for group in groups}
    common = {model: counts.most_common(1)[0][0] for model, counts in ways.items()}
    if len(set(common.values())) > 1:
        for model, way in common.items():
            yield f"{model}: {', '.join(f'{name} {value}' for name, value in way)}"


def _way(row: LeaderboardRow) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in model_protocol(row.runs[-1]) if pair[0] != "backend")
