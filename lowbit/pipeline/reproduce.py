"""Published cells run again through the bench, and compared."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lowbit.contracts import PublishedCell, PublishedResults
from lowbit.errors import LowbitError
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.reproduction_plan import Plan, about, metric_text, task_names
from lowbit.results.metrics import Metric
from lowbit.results.reproduction import PARENT_TOLERANCE, Comparison, find_metric, in_published_unit
from lowbit.results.table import Row


@dataclass(frozen=True)
class Reproduction:
    """What came out.

    Args:
        plan: What was run.
        parents: The unquantized model's published numbers beside ours: the check of the protocol.
        cells: One comparison a cell, in the plan's order.
        rows: The bench's rows by the hash of their recipe.
    """

    plan: Plan
    parents: tuple[Comparison, ...]
    cells: tuple[Comparison, ...]
    rows: Mapping[str, Row]


def reproduce(plan: Plan, options: BenchOptions) -> Reproduction:
    """Run a plan.

    Raises:
        LowbitError: Nothing in the plan can be run, or the bench refuses it before the first weight is read.
    """
    if not plan.runs:
        reasons = "; ".join(dict.fromkeys(plan.skipped.values()))
        raise LowbitError(f"none of the {len(plan.cells)} chosen cells can be run: {reasons}")
    rows: dict[str, Row] = {}
    failed_parents: list[str] = []
    for row in bench([run.recipe for run in plan.runs], options):
        if row.method != "parent":
            rows[str(row.recipe_sha256)] = row
        elif row.error is not None:
            failed_parents.append(row.error)
    lost = Row(plan.model_name, "parent", error=f"the unquantized model failed: {'; '.join(failed_parents)}")
    found = {run.recipe.sha256(): rows.get(run.recipe.sha256(), lost) for run in plan.runs}
    row_of = {cell.identity: found[run.recipe.sha256()] for run in plan.runs for cell in run.cells}
    cells = tuple(_compare(cell, plan, row_of.get(cell.identity)) for cell in plan.cells)
    return Reproduction(plan, tuple(_parents(plan, row_of)), cells, found)


def _compare(cell: PublishedCell, plan: Plan, row: Row | None) -> Comparison:
    found = _Measured(metric_text(cell, plan.results), "perplexity" not in cell.metric)
    if row is not None:
        found = _measure(cell, plan.results, row.measured, row.error)
    return Comparison(
        row=cell.label,
        metric=found.text,
        published=cell.value,
        ours=found.value,
        tolerance=plan.results.tolerance_of(cell),
        higher_is_better=found.higher_is_better,
        source=about(cell),
        reason=plan.skipped.get(cell.identity, found.reason),
        skipped=row is None,
    )


@dataclass(frozen=True)
class _Measured:
    """Our number for a cell.

    Args:
        text: Tasks and metric, with the context length that was used.
        higher_is_better: The metric's direction.
        value: The mean over the cell's tasks, or `None`.
        reason: Why there is none.
    """

    text: str
    higher_is_better: bool
    value: float | None = None
    reason: str = ""


def _measure(
    cell: PublishedCell, results: PublishedResults, measured: Sequence[Metric], error: str | None
) -> _Measured:
    lost = _Measured(metric_text(cell, results), "perplexity" not in cell.metric)
    if error is not None:
        return replace(lost, reason=error)
    metrics = []
    for task in task_names(cell, results):
        metric = find_metric(measured, task, cell.metric)
        if metric is None:
            known = ", ".join(dict.fromkeys(f"{m.task} {m.name}" for m in measured))
            return replace(lost, reason=f"there is no {cell.metric} of {task}; measured: {known}")
        metrics.append(metric)
    text = f"{metrics[0].task} {cell.metric}" if len(metrics) == 1 else lost.text
    value = statistics.fmean(in_published_unit(metric) for metric in metrics)
    return _Measured(text, metrics[0].higher_is_better, value)


def _parents(plan: Plan, row_of: Mapping[str, Row]) -> Iterator[Comparison]:
    """Compare the unquantized model's published numbers, each once."""
    seen: set[tuple[str, float]] = set()
    for cell in plan.cells:
        row, text = row_of.get(cell.identity), metric_text(cell, plan.results)
        if cell.parent is None or row is None or (text, cell.parent) in seen:
            continue
        seen.add((text, cell.parent))
        # What keeps a quantization from its result says nothing of its parent's.
        found = _measure(cell, plan.results, row.parent_measured, None if row.parent_measured else row.error)
        yield Comparison(
            row="unquantized",
            metric=found.text,
            published=cell.parent,
            ours=found.value,
            tolerance=PARENT_TOLERANCE,
            higher_is_better=found.higher_is_better,
            source=cell.source,
            reason=found.reason,
        )
