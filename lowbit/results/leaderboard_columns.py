"""The columns of a leaderboard: what a results directory offers, chosen by name."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.errors import LowbitError
from lowbit.results.metrics import PREFERRED, Metric
from lowbit.results.protocol import task_protocol
from lowbit.results.store import StoredResult

Settings = tuple[tuple[str, str], ...]
RECOVERY = "recovery"
MEAN_ACCURACY = "mean_acc"


@dataclass(frozen=True)
class Measurement:
    """One metric of one run, with how it was asked.

    Args:
        metric: The metric.
        settings: The task's protocol.
        fewshot_seed: What few-shot examples were drawn by; `None` without any.
        recovery: What is left of the parent's value, in percent; `None` where it is not known.
    """

    metric: Metric
    settings: Settings
    fewshot_seed: str | None
    recovery: float | None


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        key: The name that `--columns` takes.
        title: What stands above it.
        higher_is_better: Its direction; `None` where there is no better and worse.
        digits: Digits behind the point.
        task: The task whose metric it shows, if any.
        metric_key: The metric's name and filter.
        settings: The protocol that all its values share.
        variant: A letter where the same metric has columns of several protocols.
        of_recovery: Whether it shows what is left of the parent's value instead of the value.
    """

    key: str
    title: str
    higher_is_better: bool | None = None
    digits: int = 2
    task: str | None = None
    metric_key: str = ""
    settings: Settings = ()
    variant: str = ""
    of_recovery: bool = False

    @property
    def heading(self) -> str:
        """Title, letter of the protocol and arrow of the direction."""
        arrow = "" if self.higher_is_better is None else " ↑" if self.higher_is_better else " ↓"
        return f"{self.title}{f' [{self.variant}]' if self.variant else ''}{arrow}"


def _bits(key: str) -> Callable[[StoredResult], Any]:
    return lambda result: None if result.bits is None else result.bits.get(key)


def _lowbit(*path: str) -> Callable[[StoredResult], Any]:
    def read(result: StoredResult) -> Any:
        value: Any = result.lowbit
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return read


NUMBERS: dict[str, tuple[Column, Callable[[StoredResult], Any]]] = {
    column.key: (column, read)
    for column, read in (
        (Column("bits.nominal", "bits nominal"), _bits("nominal_bits")),
        (Column("bits.linear", "bits linear"), _bits("quantized_bits")),
        (Column("bits.file", "bits file"), _bits("whole_file_bits")),
        (Column("file_bytes", "file bytes", digits=0), _bits("file_bytes")),
        (Column("seconds", "quantize s", digits=1), _lowbit("cost", "seconds")),
        (Column("memory_bytes", "peak bytes", digits=0), _lowbit("cost", "peak_memory_bytes")),
        (Column("tokens_per_second", "tokens/s", digits=1), _lowbit("speed", "packed", "tokens_per_second")),
    )
}
"""Columns of numbers that a run has beside its metrics."""


def _each(runs: Sequence[StoredResult], read: Callable[[StoredResult], Any]) -> str:
    """Return what runs say, each answer once, oldest first."""
    return ", ".join(dict.fromkeys(str(read(run)) for run in runs))


TEXTS: dict[str, Callable[[Sequence[StoredResult]], str]] = {
    "model": lambda runs: runs[-1].model,
    "method": lambda runs: runs[-1].method,
    "seeds": lambda runs: ", ".join(str(seed) for seed in sorted({r.seed for r in runs if r.seed is not None})) or "-",
    "runs": lambda runs: str(len(runs)),
    "date": lambda runs: max(run.date for run in runs).strftime("%Y-%m-%d %H:%M"),
    "identity": lambda runs: ", ".join(run.identity for run in runs),
    "recipe": lambda runs: (runs[-1].recipe_sha256 or "-")[:12],
    "backend": lambda runs: str(runs[-1].lowbit.get("backend") or "-"),
    "device": lambda runs: _each(runs, lambda run: run.lowbit.get("device") or "-"),
    "versions": lambda runs: _each(runs, lambda run: f"lowbit {(run.lowbit.get('versions') or {}).get('lowbit', '-')}"),
}
"""Columns of text about the runs of a row; `model` and `method` are made distinct by the table."""


def measurements(results: Iterable[StoredResult]) -> dict[str, list[Measurement]]:
    """Return every run's measurements, by the run's identity and path.

    A hash of the documents that one file does not give (lm-eval's own files have none) is taken to be the one that all
    others agree on.
    """
    found: dict[str, list[Measurement]] = {}
    for result in results:
        recovered = result.lowbit.get("recovery") or {}
        for metric in result.metrics:
            protocol = task_protocol(result, metric.task)
            percent = ((recovered.get(metric.task) or {}).get(metric.key) or {}).get("recovery_percent")
            number = float(percent) if isinstance(percent, int | float) else None
            one = Measurement(metric, protocol.settings, protocol.fewshot_seed, number)
            found.setdefault(str(result.path), []).append(one)
    hashes: dict[tuple[str, Settings], set[str]] = {}
    for one in (one for several in found.values() for one in several):
        data = dict(one.settings).get("data")
        if data is not None:
            hashes.setdefault((one.metric.task, _without_data(one.settings)), set()).add(data)
    return {path: [_with_known_data(one, hashes) for one in several] for path, several in found.items()}


def _with_known_data(one: Measurement, hashes: Mapping[tuple[str, Settings], set[str]]) -> Measurement:
    known = hashes.get((one.metric.task, one.settings), set())
    if "data" in dict(one.settings) or len(known) != 1:
        return one
    (data,) = known
    position = next((i for i, (name, _) in enumerate(one.settings) if name == "lm-eval"), len(one.settings))
    settings = (*one.settings[:position], ("data", data), *one.settings[position:])
    return Measurement(one.metric, settings, one.fewshot_seed, one.recovery)


def _without_data(settings: Settings) -> Settings:
    return tuple(pair for pair in settings if pair[0] != "data")


def metric_columns(measured: Mapping[str, Sequence[Measurement]]) -> dict[str, list[Column]]:
    """Return one column for each metric and protocol, by `TASK.METRIC` (with `.FILTER` where there is one)."""
    kinds: dict[str, tuple[Metric, Counter[Settings]]] = {}
    for one in (one for several in measured.values() for one in several):
        kinds.setdefault(_metric_name(one.metric), (one.metric, Counter()))[1][one.settings] += 1
    columns: dict[str, list[Column]] = {}
    for key, (metric, protocols) in kinds.items():
        ordered = [settings for settings, _ in protocols.most_common()]
        digits = 4 if metric.higher_is_better else 2
        columns[key] = [
            Column(
                key=key,
                title=f"{metric.task} {metric.name}{'' if metric.filter == 'none' else f' {metric.filter}'}",
                higher_is_better=metric.higher_is_better,
                digits=digits,
                task=metric.task,
                metric_key=metric.key,
                settings=settings,
                variant=_letter(number) if len(ordered) > 1 else "",
            )
            for number, settings in enumerate(ordered)
        ]
    return columns


def _metric_name(metric: Metric) -> str:
    return f"{metric.task}.{metric.name}{'' if metric.filter == 'none' else f'.{metric.filter}'}"


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else _letter(number // 26 - 1) + _letter(number % 26)


def primary_columns(columns: Mapping[str, Sequence[Column]]) -> dict[str, list[Column]]:
    """Return the columns of each task's first metric: accuracy or perplexity where there is one."""
    by_task: dict[str, list[str]] = {}
    for key, several in columns.items():
        task = several[0].task
        assert task is not None
        by_task.setdefault(task, []).append(key)
    return {task: list(columns[min(keys, key=lambda key: _rank(columns[key][0]))]) for task, keys in by_task.items()}


def _rank(column: Column) -> int:
    name = column.metric_key.partition(",")[0]
    return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)


def choose_columns(names: Sequence[str], columns: Mapping[str, Sequence[Column]]) -> list[Column]:
    """Return the columns that a user named; one name gives several where a metric has several protocols.

    Raises:
        LowbitError: A name is unknown; the message has the nearest ones and lists all.
    """
    return [column for name in names for column in _named(name, columns)]


def default_names(columns: Mapping[str, Sequence[Column]], inside_groups: frozenset[str] = frozenset()) -> list[str]:
    """Return the names of the columns that a leaderboard has unless others are asked for.

    Args:
        columns: What `metric_columns` offers.
        inside_groups: Tasks that are shown only where they are named.
    """
    shown = [several[0].key for task, several in primary_columns(columns).items() if task not in inside_groups]
    return ["method", "bits.nominal", "bits.linear", "bits.file", *shown, RECOVERY]


def _named(name: str, columns: Mapping[str, Sequence[Column]]) -> list[Column]:
    if name in TEXTS:
        return [Column(name, name)]
    if name in NUMBERS:
        return [NUMBERS[name][0]]
    if name == RECOVERY:
        return [Column(RECOVERY, "recovery %", True, 1)]
    if name == MEAN_ACCURACY:
        return [Column(MEAN_ACCURACY, "mean acc", True, 4)]
    wanted = name.removeprefix(f"{RECOVERY}.")
    found = _metrics_named(wanted, columns)
    if not found:
        known = available_names(columns)
        near = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise LowbitError(f"there is no column {name!r}; {hint}columns here: {', '.join(known)}")
    if wanted == name:
        return found
    return [_recovery_of(column) for column in found]


def _metrics_named(name: str, columns: Mapping[str, Sequence[Column]]) -> list[Column]:
    """Return the columns of `TASK.METRIC`, of `TASK`'s first metric, or of `TASK` at every context length."""
    primary = primary_columns(columns)
    if name in columns:
        return list(columns[name])
    if name in primary:
        return primary[name]
    return [column for task, several in primary.items() if task.partition("@")[0] == name for column in several]


def _recovery_of(column: Column) -> Column:
    return Column(
        key=f"{RECOVERY}.{column.key}",
        title=f"{column.title} recovery %",
        higher_is_better=True,
        digits=1,
        task=column.task,
        metric_key=column.metric_key,
        settings=column.settings,
        variant=column.variant,
        of_recovery=True,
    )


def available_names(columns: Mapping[str, Sequence[Column]]) -> list[str]:
    """Return every name that `--columns` takes for these results."""
    tasks = [task for task in primary_columns(columns) if task not in columns]
    return [*TEXTS, *NUMBERS, RECOVERY, MEAN_ACCURACY, *tasks, *columns, *(f"{RECOVERY}.{task}" for task in tasks)]
