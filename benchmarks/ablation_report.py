"""The rows of the ablation: medians over seeds, what training recovers, and the difference from the base."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from ablation_cells import AblationCell
from rich.console import Console
from rich.table import Table

TITLES = (
    "changed",
    "variant",
    "seeds",
    "bits linear",
    "tokens / base",
    "seconds",
    "perplexity",
    "recovery %",
    "to base %",
)
LEAST_WIDTH = 140


@dataclass(frozen=True)
class Row:
    """One variant with all its seeds.

    Args:
        group: What is changed.
        name: To what.
        cells: By seed; failed ones are not among them.
        budget: How its tokens differ from the base's by plan.
        is_base: Whether it is the base recipe.
    """

    group: str
    name: str
    cells: tuple[AblationCell, ...]
    budget: str = ""
    is_base: bool = False

    @property
    def perplexities(self) -> list[float]:
        """Of every seed; one that is not finite counts as infinite."""
        return [math.inf if cell.perplexity is None else cell.perplexity for cell in self.cells]

    @property
    def median(self) -> float:
        """The median over seeds."""
        return statistics.median(self.perplexities)

    @property
    def title(self) -> str:
        """The name, with what must be known to compare it."""
        remarks = [self.budget] if self.budget in ("fewer tokens", "more tokens") else []
        remarks += ["base"] if self.is_base and self.name != "base" else []
        return f"{self.name} ({', '.join(remarks)})" if remarks else self.name


@dataclass(frozen=True)
class Report:
    """Everything that is rendered.

    Args:
        plan: What the command wrote of base, model, split and variants.
        rows: In the plan's order; variants without a cell are left out.
        parent: The parent's perplexity, or `None`.
        failed: Cells that carry an error.
    """

    plan: Mapping[str, Any]
    rows: tuple[Row, ...]
    parent: float | None
    failed: tuple[AblationCell, ...]

    def reference(self, name: str) -> Row | None:
        """Return one of the reference rows."""
        return next((row for row in self.rows if (row.group, row.name) == ("references", name)), None)

    @property
    def cells(self) -> list[AblationCell]:
        """Every cell without an error, each once."""
        return list({(cell.key, cell.seed): cell for row in self.rows for cell in row.cells}.values())


def make_report(plan: Mapping[str, Any], cells: Sequence[AblationCell]) -> Report:
    """Sort cells into the plan's variants; cells of other recipes than the plan's are left out."""
    good = [cell for cell in cells if cell.error is None and cell.seed in plan["seeds"]]
    base = plan["variants"][0]["key"]
    rows = []
    for variant in plan["variants"]:
        found = sorted((cell for cell in good if cell.key == variant["key"]), key=lambda cell: cell.seed)
        if found:
            is_base = variant["key"] == base
            found = found if variant["seeded"] else found[:1]
            rows.append(Row(variant["group"], variant["name"], tuple(found), variant["budget"], is_base))
    parent = next((cell.perplexity for cell in good if cell.key == plan["parent"]), None)
    keys = {plan["parent"], *(variant["key"] for variant in plan["variants"])}
    failed = [cell for cell in cells if cell.error is not None and cell.key in keys and cell.seed in plan["seeds"]]
    return Report(plan, tuple(rows), parent, tuple(failed))


def recovery(report: Report, perplexity: float) -> float | None:
    """Return which percentage of what `dbllm-ptq` lost against the parent is made good."""
    untrained = report.reference("dbllm-ptq")
    if untrained is None or report.parent is None or untrained.median <= report.parent:
        return None
    if not math.isfinite(perplexity) or not math.isfinite(untrained.median):
        return None
    return 100 * (1 - (perplexity - report.parent) / (untrained.median - report.parent))


def figure(value: float) -> str:
    """Return a perplexity as text, with four digits or more."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:#.4g}" if value < 1000 else f"{value:.0f}"


def table_rows(report: Report) -> list[list[str]]:
    """Return the table's text; the group stands in the first row of each."""
    base = report.reference("base")
    rows, group = [], ""
    if report.parent is not None:
        rows.append(["references", "parent", "1", "-", "-", "-", figure(report.parent), "100.0", "-"])
        group = "references"
    for row in report.rows:
        values = row.perplexities
        spread = f" ({figure(min(values))} to {figure(max(values))})" if len(values) > 1 else ""
        regained = recovery(report, row.median)
        rows.append(
            [
                row.group if row.group != group else "",
                row.title,
                str(len(values)),
                f"{_median(row, lambda cell: cell.bits[1]):.2f}",
                _share_of_tokens(row, base),
                f"{_median(row, lambda cell: cell.seconds):.0f}",
                figure(row.median) + spread,
                "-" if regained is None else f"{regained:.1f}",
                _difference(row, base),
            ]
        )
        group = row.group
    failed = [[cell.label, f"seed {cell.seed}", "failed", *[""] * (len(TITLES) - 3)] for cell in report.failed]
    return rows + failed


def _median(row: Row, value: Any) -> float:
    return statistics.median(value(cell) for cell in row.cells)


def _share_of_tokens(row: Row, base: Row | None) -> str:
    tokens = _median(row, lambda cell: cell.tokens)
    if base is None:
        return f"{tokens:.0f} tokens"
    return f"{tokens / _median(base, lambda cell: cell.tokens):.2f}"


def _difference(row: Row, base: Row | None) -> str:
    if base is None or row.is_base or not math.isfinite(row.median) or not math.isfinite(base.median):
        return "-"
    return f"{100 * (row.median / base.median - 1):+.1f}"


def describe(report: Report) -> str:
    """Say how the cells were made: model, text, base, seeds, tokens, dates and versions."""
    plan, cells = report.plan, report.cells
    dates = sorted(cell.date for cell in cells)
    judged = sorted({f"{cell.metric} of {cell.task} ({cell.evaluated})" for cell in cells})
    versions = sorted({f"{name} {value}" for cell in cells for name, value in cell.signature["versions"].items()})
    base = report.reference("base")
    tokens = "" if base is None else f" ({_median(base, lambda cell: cell.tokens):.0f} training tokens)"
    cores = len({tuple(sorted(cell.core.items())) for cell in cells})
    missing = len({v["key"] for v in plan["variants"]} - {cell.key for cell in cells})
    return (
        f"Model {plan['model']}, split {plan['split']}: {'; '.join(judged)}. Base: method {plan['method']}, "
        f"{plan['from']}{tokens}, recipe {plan['base_sha256'][:12]}. {len(cells)} cells made from {dates[0]} to "
        f"{dates[-1]}; seeds {', '.join(map(str, plan['seeds']))}, one where the seed plays no part; float32, one "
        f"thread each. Perplexity: the median over seeds, in brackets the lowest and the highest. Recovery: 100 % is "
        f"the parent, 0 % `dbllm-ptq`. Tokens: processed in training, as a share of the base's. Versions: "
        f"{', '.join(versions)}."
        + (f" {missing} variants are not made." if missing else "")
        + (f" NOTE: the core's code changed in between; the cells come from {cores} states of it." if cores > 1 else "")
    )


def print_report(report: Report, markdown: bool) -> None:
    """Print the description, the table, and the errors."""
    if report.cells:
        click.echo(describe(report) + "\n")
    rows = table_rows(report)
    if markdown:
        lines = [TITLES, ("---", "---", *["---:"] * (len(TITLES) - 2)), *rows]
        click.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
    else:
        _print_table(rows)
    for cell in report.failed:
        click.echo(f"{cell.label} seed {cell.seed}: FAILED: {cell.error}", err=True)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for title in TITLES:
        table.add_column(title, justify="left" if title in TITLES[:2] else "right", no_wrap=title != "variant")
    for position, row in enumerate(rows):
        if position and row[0]:
            table.add_section()
        table.add_row(*row)
    Console(width=max(Console().width, LEAST_WIDTH)).print(table)
