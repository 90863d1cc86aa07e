"""Published numbers beside measured ones: the verdicts, and the table that shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.table import Table
from rich.text import Text

from lowbit.results.metrics import Metric
from lowbit.untrusted import printable

MISSING = "-"
PARENT_TOLERANCE = 0.01
"""Relative difference of the unquantized model's number beyond which the protocol is another one."""
SLACK = 1e-9
"""Keeps a difference that equals its tolerance from failing by the rounding of the division."""
PERCENT_METRICS = ("acc", "exact_match", "em", "f1")
STYLES = {"PASS": "green", "NEAR": "yellow", "FAIL": "bold red", "SKIPPED": "dim"}


class Verdict(StrEnum):
    """How a measured number stands to a published one."""

    PASS = "PASS"
    """The relative difference is within the tolerance."""
    NEAR = "NEAR"
    """It is within twice the tolerance."""
    FAIL = "FAIL"
    """It is larger, or there is no number because the run failed."""
    SKIPPED = "SKIPPED"
    """Nothing was run for it; the reason stands beside it."""


@dataclass(frozen=True)
class Comparison:
    """One published number beside ours.

    Args:
        row: The row as its table names it.
        metric: Task and metric.
        published: The published number; accuracies in percent.
        ours: The measured one, or `None`.
        tolerance: Relative difference that passes.
        higher_is_better: The metric's direction.
        source: Paper and table.
        reason: Why there is no number of ours.
        skipped: Whether nothing was run for it.
    """

    row: str
    metric: str
    published: float
    ours: float | None
    tolerance: float
    higher_is_better: bool = False
    source: str = ""
    reason: str = ""
    skipped: bool = False

    @property
    def difference(self) -> float | None:
        """Relative difference, ours against published."""
        return None if self.ours is None else self.ours / self.published - 1

    @property
    def verdict(self) -> Verdict:
        """PASS, NEAR, FAIL or SKIPPED."""
        if self.skipped:
            return Verdict.SKIPPED
        difference = self.difference
        if difference is None or not math.isfinite(difference):
            return Verdict.FAIL
        if abs(difference) <= self.tolerance + SLACK:
            return Verdict.PASS
        return Verdict.NEAR if abs(difference) <= 2 * self.tolerance + SLACK else Verdict.FAIL

    @property
    def better(self) -> bool:
        """Whether ours is outside the tolerance on the good side."""
        difference = self.difference
        if difference is None or not math.isfinite(difference) or self.verdict == Verdict.PASS:
            return False
        return (difference > 0) == self.higher_is_better


def in_published_unit(metric: Metric) -> float:
    """Return a metric as papers print it: accuracies, exact matches and F1 scores in percent."""
    return 100 * metric.value if metric.name.startswith(PERCENT_METRICS) else metric.value


def find_metric(measured: Sequence[Metric], task: str, name: str) -> Metric | None:
    """Return the metric of a task, or `None`.

    Args:
        measured: Every metric of a result.
        task: Its task; a token perplexity without its context length finds that of the only one.
        name: Its name, with `,FILTER` where the harness's filter is not `none`.
    """
    mine = [metric for metric in measured if task in (metric.task, metric.task.partition("@")[0])]
    exact = [metric for metric in mine if metric.key == name]
    plain = [metric for metric in mine if metric.name == name]
    plain.sort(key=lambda metric: metric.filter != "none")
    return next(iter([*exact, *plain]), None)


def protocol_differs(parents: Sequence[Comparison]) -> list[Comparison]:
    """Return the unquantized model's numbers that are off by more than `PARENT_TOLERANCE`."""
    return [parent for parent in parents if parent.verdict in (Verdict.NEAR, Verdict.FAIL)]


def render_reproduction(parents: Sequence[Comparison], cells: Sequence[Comparison]) -> Table:
    """Return the table for a terminal: the unquantized model first, because it checks the protocol."""
    table = Table(
        caption="difference: ours against published; PASS within the tolerance, NEAR within twice the tolerance",
        caption_justify="left",
    )
    for number, title in enumerate(("cell", "metric", "published", "ours", "difference %", "tolerance %")):
        table.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    table.add_column("verdict")
    table.add_column("source", overflow="fold")
    for parent in parents:
        table.add_row(*_cells(parent))
    if parents:
        table.add_section()
    for cell in cells:
        table.add_row(*_cells(cell))
    return table


def _cells(found: Comparison) -> list[Text]:
    decimals = 4 if found.published < 1 else 2
    ours = MISSING if found.ours is None else f"{found.ours:.{decimals}f}"
    difference = MISSING if found.difference is None else f"{100 * found.difference:+.2f}"
    verdict = f"{found.verdict} (better)" if found.better else str(found.verdict)
    published, tolerance = f"{found.published:.{decimals}f}", f"{100 * found.tolerance:g}"
    about = f"{found.source}: {found.reason}" if found.reason and found.source else found.reason or found.source
    plain = [found.row, found.metric, published, ours, difference, tolerance]
    return [
        *(Text(printable(cell)) for cell in plain),
        Text(verdict, style=STYLES[found.verdict]),
        Text(printable(about)),
    ]


def counts(cells: Sequence[Comparison]) -> dict[str, int]:
    """Return how many cells have each verdict."""
    return {str(verdict): sum(cell.verdict == verdict for cell in cells) for verdict in Verdict}
