"""The table that ends a run: parent first, bits three ways, each task with recovery, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from lowbit.results.metrics import Metric, recovery
from lowbit.results.table_text import escape_markdown
from lowbit.untrusted import printable

MISSING = "-"


@dataclass(frozen=True)
class Row:
    """One model under one method.

    Args:
        model: The parent's name.
        method: The method; `parent` for the parent itself.
        bits: Nominal, quantized-layer and whole-file bits a weight.
        metrics: The primary metric of each task.
        parent: The parent's primary metrics; empty for the parent itself.
        chance: The accuracy of blind choice by task.
        seconds: What quantization took; `None` for the parent and for a checkpoint found finished.
        memory_bytes: Its peak memory.
        error: Why there is no result.
        recipe_sha256: The recipe that it is the result of; of a parent, the first recipe that asked for it.
        measured: Every metric of every task.
        parent_measured: The same of the parent.
        decoding: Tokens a second of greedy decoding, packed and dense; empty where it was not timed.
        seed: The seed of the quantization; `None` for the parent. Tables show it where rows differ in it.
    """

    model: str
    method: str
    bits: tuple[float, float, float] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    parent: Mapping[str, Metric] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    memory_bytes: int | None = None
    error: str | None = None
    recipe_sha256: str | None = None
    measured: Sequence[Metric] = ()
    parent_measured: Sequence[Metric] = ()
    decoding: Sequence[float] = ()
    seed: int | None = None


def header(rows: Sequence[Row]) -> list[str]:
    """Return the column titles, with one column a task that any row has."""
    tasks: dict[str, Metric] = {}
    for row in rows:
        for task, metric in row.metrics.items():
            tasks.setdefault(task, metric)
    arrows = [f"{task} {metric.name} {'↑' if metric.higher_is_better else '↓'}" for task, metric in tasks.items()]
    speed = ["tokens/s (x dense)"] if any(row.decoding for row in rows) else []
    seeded = ["seed"] if has_seeds(rows) else []
    return [
        "model",
        "method",
        *seeded,
        "bits nominal",
        "bits linear",
        "bits file",
        *arrows,
        "quantize s",
        "peak MB",
        *speed,
    ]


def has_seeds(rows: Sequence[Row]) -> bool:
    """Say whether a table needs a column of seeds: only where there are several."""
    return len({row.seed for row in rows if row.seed is not None}) > 1


def cells(row: Row, tasks: Sequence[str], timed: bool = False, seeded: bool = False) -> list[str]:
    """Return a row as text, recovery behind each value in percent of the parent.

    Args:
        row: The row.
        tasks: The columns of tasks.
        timed: Whether the table has a column of decoding speed.
        seeded: Whether it has one of seeds.
    """
    seed = [MISSING if row.seed is None else str(row.seed)] if seeded else []
    bits = [f"{value:.2f}" for value in row.bits] if row.bits else [MISSING] * 3
    values = [_value(row, task) for task in tasks]
    if row.error is not None and values:
        values = ["failed", *[MISSING] * (len(values) - 1)]
    seconds = MISSING if row.seconds is None else f"{row.seconds:.1f}"
    memory = MISSING if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.0f}"
    return [row.model, row.method, *seed, *bits, *values, seconds, memory, *([_speed(row)] if timed else [])]


def _speed(row: Row) -> str:
    if len(row.decoding) != 2:
        return MISSING
    packed, dense = row.decoding
    return f"{packed:.1f} ({packed / dense:.2f})"


def task_names(rows: Sequence[Row]) -> list[str]:
    """Return every task of the rows, in order of appearance."""
    return list(dict.fromkeys(task for row in rows for task in row.metrics))


def render(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal."""
    table = Table(caption="in brackets: recovery in percent of the parent; bits per weight", caption_justify="left")
    tasks, timed, seeded = task_names(rows), any(row.decoding for row in rows), has_seeds(rows)
    for number, title in enumerate(header(rows)):
        table.add_column(printable(title), justify="left" if number < 2 else "right", overflow="fold")
    previous = None
    for row in rows:
        if previous is not None and row.model != previous:
            table.add_section()
        table.add_row(*(Text(printable(cell)) for cell in cells(row, tasks, timed, seeded)))
        previous = row.model
    return table


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    titles = header(rows)
    tasks, timed, seeded = task_names(rows), any(row.decoding for row in rows), has_seeds(rows)
    alignment = ["---", "---", *["---:"] * (len(titles) - 2)]
    lines = [titles, alignment, *(cells(row, tasks, timed, seeded) for row in rows)]
    return "\n".join("| " + " | ".join(escape_markdown(cell) for cell in line) + " |" for line in lines) + "\n"


def _value(row: Row, task: str) -> str:
    metric = row.metrics.get(task)
    if metric is None:
        return MISSING
    text = f"{metric.value:.4f}" if metric.higher_is_better else f"{metric.value:.2f}"
    ancestor = row.parent.get(task)
    if ancestor is None:
        return text
    percent = recovery(ancestor, metric, row.chance.get(task, 0.0)).percent
    return text if percent is None else f"{text} ({percent:.1f})"
