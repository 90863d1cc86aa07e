"""Everything a report says, in the form that page and plots are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.errors import LowbitError
from lowbit.report.layers import layer_data, why_no_layers
from lowbit.report.numbers import finite, rounded
from lowbit.report.table import ReportTable, TableColumn, TableRow, build_table
from lowbit.report.training import training_data, why_no_training
from lowbit.results.protocol import model_protocol, parent_key, task_protocol
from lowbit.results.store import ResultFolder, StoredResult

SIZES = (("file", "whole-file bits a weight"), ("linear", "quantized-layer bits a weight"), ("nominal", "nominal bits"))
_GIGABYTE, _MEGABYTE = 1e9, 1e6


@dataclass(frozen=True)
class Content:
    """What a report shows.

    Args:
        folder: The results directory's name.
        table: The leaderboard.
        chosen: The row whose layers and training are shown first; `None` where no run has any.
        unreadable: Names of files that could not be read, with the reason.
        repeated_parents: Files of parents left out because a later one says the same.
    """

    folder: str
    table: ReportTable
    chosen: int | None
    unreadable: tuple[tuple[str, str], ...]
    repeated_parents: int = 0

    @property
    def y_column(self) -> TableColumn | None:
        """The metric that the plot shows at first: the perplexity, else the score, that most quantized runs have."""
        rows = [row for row in self.table.rows if row.result.role != "parent"] or list(self.table.rows)

        def rank(column: TableColumn) -> tuple[bool, int, bool]:
            found = sum(self.table.value(row, column) is not None for row in rows)
            return column.shown, found, column.higher_is_better is False

        return max(self.table.metrics, key=rank, default=None)


def gather(folder: ResultFolder, run: str | None = None) -> Content:
    """Collect what a report shows.

    Args:
        folder: The results directory as read.
        run: Identity of the run whose layers and training are shown first; by default the latest that has most of them.

    Raises:
        LowbitError: The directory has no result, or none of that identity.
    """
    if not folder.results:
        raise LowbitError(
            f"there is no result in {folder.folder}"
            + (f" ({len(folder.unreadable)} files there cannot be read)" if folder.unreadable else "")
            + f"; `lowbit bench -o {folder.folder}` writes some"
        )
    results, alike = _without_repeated_parents(folder.results, run)
    table = build_table(results)
    chosen = _richest(table.rows) if run is None else _row_of(table.rows, str(folder.find(run).path))
    unreadable = tuple((path.name, reason) for path, reason in folder.unreadable)
    return Content(folder.folder.resolve().name, table, chosen, unreadable, alike)


def page_data(content: Content) -> dict[str, Any]:
    """Return what the page's scripts draw from, without the parts of single runs."""
    table = content.table
    metrics = [
        {
            "key": column.key,
            "title": axis_title(column),
            "name": f"{column.title}{f' ({column.note})' if column.note else ''}",
            "lower": column.higher_is_better is False,
        }
        for column in table.metrics
    ]
    y = content.y_column
    return {
        "sizes": [{"key": key, "title": title} for key, title in size_axes(table.rows)],
        "metrics": metrics,
        "y": None if y is None else y.key,
        "chosen": content.chosen,
        "runs": [_run(table, row) for row in table.rows],
    }


def run_data(content: Content) -> list[dict[str, Any]]:
    """Return of each run what its heat maps and curves are drawn from, or why there is none."""
    found = []
    for row in content.table.rows:
        layers, training = layer_data(row.result), training_data(row.result)
        found.append(
            {
                "layers": layers,
                "why_no_layers": None if layers else why_no_layers(row.result),
                "training": training,
                "why_no_training": None if training else why_no_training(row.result),
            }
        )
    return found


def size_axes(rows: Sequence[TableRow]) -> list[tuple[str, str]]:
    """Return the axes of size: key and title, with a unit of bytes that suits the largest file."""
    _, name = _unit(rows)
    return [*SIZES, ("bytes", f"file size in {name}")]


def size_of(row: TableRow, key: str, rows: Sequence[TableRow]) -> float | None:
    """Return a run's size on an axis."""
    if key == "bytes":
        number = finite(row.bits.get("file_bytes"))
        return None if number is None else rounded(number / _unit(rows)[0], 6)
    names = {"nominal": "nominal_bits", "linear": "quantized_bits", "file": "whole_file_bits"}
    return rounded(row.bits.get(names[key]), 6)


def axis_title(column: TableColumn) -> str:
    """Return a metric's title for an axis, with its direction in words."""
    note = f" ({column.note})" if column.note else ""
    title = " ".join(f"{column.title}{note}".split())  # A line's end in a name would break the chart's expressions.
    return f"{title}, {'higher' if column.higher_is_better else 'lower'} is better"


def item_rows(row: TableRow) -> list[dict[str, Any]]:
    """Return what a run's file consists of, in bits a weight and in bytes; the largest item first."""
    items, parameters = row.bits.get("items"), finite(row.bits.get("parameters"))
    if not isinstance(items, Mapping) or not parameters:
        return []
    sized = [(str(name), number) for name, value in items.items() if (number := finite(value))]
    ordered = sorted(sized, key=lambda pair: (pair[0].startswith(("unquantized", "headers")), -pair[1]))
    return [{"item": name, "bits": rounded(8 * size / parameters, 6), "bytes": size} for name, size in ordered]


def label_of(row: TableRow) -> str:
    """Return what a plot or a list of choices calls a run."""
    seed = "" if row.result.seed is None else f" · seed {row.result.seed}"
    return f"{row.result.method} · {row.result.model}{seed} · {row.result.identity}"


def _run(table: ReportTable, row: TableRow) -> dict[str, Any]:
    values = {column.key: rounded(table.value(row, column), 6) for column in table.metrics}
    return {
        "id": row.result.identity,
        "method": row.result.method,
        "model": row.result.model,
        "role": row.result.role,
        "seed": row.result.seed,
        "settings": row.settings,
        "with": row.run_with,
        "label": label_of(row),
        "sizes": {key: size_of(row, key, table.rows) for key, _ in size_axes(table.rows)},
        "values": {key: value for key, value in values.items() if value is not None},
        "items": [[item["item"], item["bits"], item["bytes"]] for item in item_rows(row)],
    }


def _without_repeated_parents(results: Sequence[StoredResult], run: str | None) -> tuple[list[StoredResult], int]:
    """Return the results with the latest file only of parents that were run and measured alike; and how many less.

    Every bench writes the result of its parent; those who look for a run find it once.
    """
    latest: dict[Any, StoredResult] = {}
    for result in results:
        alike: Any = str(result.path)
        if result.role == "parent" and not (run and result.identity.startswith(run.lower())):
            asked = tuple((metric, task_protocol(result, metric.task).settings) for metric in result.metrics)
            alike = (parent_key(result), model_protocol(result), asked)
        latest[alike] = result
    kept = {id(result) for result in latest.values()}
    return [result for result in results if id(result) in kept], len(results) - len(kept)


def _unit(rows: Sequence[TableRow]) -> tuple[float, str]:
    largest = max((finite(row.bits.get("file_bytes")) or 0.0 for row in rows), default=0.0)
    return (_GIGABYTE, "gigabytes") if largest >= _GIGABYTE / 10 else (_MEGABYTE, "megabytes")


def _richest(rows: Sequence[TableRow]) -> int | None:
    def rank(number: int) -> tuple[bool, bool, Any]:
        record = rows[number].result.lowbit
        trained, layers = bool(record.get("training")), record.get("layers") or ()
        diagnosed = any(layer.get("diagnostics") for layer in layers if isinstance(layer, Mapping))
        return trained, diagnosed, rows[number].result.date

    known = [n for n, row in enumerate(rows) if row.result.lowbit.get("layers") or row.result.lowbit.get("training")]
    return max(known, key=rank, default=None)


def _row_of(rows: Sequence[TableRow], path: str) -> int:
    return next(number for number, row in enumerate(rows) if str(row.result.path) == path)
