"""A comparison of runs as terminal table, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from lowbit.results.comparison import ComparedRuns, Comparison
from lowbit.results.store import StoredResult
from lowbit.results.table_text import csv_row, escape_markdown
from lowbit.untrusted import printable

TITLES = ("task", "metric", "run", "first", "run's", "difference", "95 % interval", "p", "test", "documents", "verdict")


def render(compared: ComparedRuns) -> Table:
    """Return the table for a terminal."""
    table = Table(caption=Text(printable(f"first: {_label(compared.runs[0])}")), caption_justify="left")
    corrected = len(compared.runs) > 2
    for number, title in enumerate(_titles(corrected)):
        table.add_column(title, justify="left" if number < 3 else "right", overflow="fold")
    for row in compared.rows:
        table.add_row(*(Text(printable(cell)) for cell in _cells(row, corrected)))
    return table


def explanations(compared: ComparedRuns) -> list[str]:
    """Return what a reader must know beside the table: the runs, the tests, what was left out."""
    lines = [f"{run.identity}: {_label(run)} ({run.path})" for run in compared.runs]
    lines.append("difference: run's minus first; interval: paired bootstrap over documents")
    if any(row.mcnemar is None for row in compared.rows):
        lines.append("permutation: how often a difference as large comes of exchanging the two answers to documents")
    if any(row.mcnemar is not None for row in compared.rows):
        lines.append("McNemar exact: of the documents on which both disagree, in brackets only first:only run right")
    if len(compared.runs) > 2:
        lines.append("p Holm: corrected for the number of runs compared with the first; the verdict is of it")
    seeds = {row.second.seed for row in compared.rows} | {compared.runs[0].seed}
    if seeds != {None}:
        lines.append("the tests hold for these very runs; what another seed would give they do not say")
    return [*lines, *(f"note: {note}" for note in compared.notes)]


def to_markdown(compared: ComparedRuns) -> str:
    """Return the table and what must be known beside it as Markdown."""
    corrected = len(compared.runs) > 2
    titles = _titles(corrected)
    lines = [titles, ["---"] * 3 + ["---:"] * (len(titles) - 3)]
    lines += [[escape_markdown(cell) for cell in _cells(row, corrected)] for row in compared.rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    told = [*explanations(compared), *(f"warning: {warning}" for warning in compared.warnings)]
    return table + "\n\n" + "\n".join(f"- {escape_markdown(line)}" for line in told) + "\n"


def to_csv(compared: ComparedRuns) -> str:
    """Return one line a comparison, numbers in full."""
    rows = [_plain(row) for row in compared.rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(csv_row(row.values()) for row in rows)
    return text.getvalue()


def to_json(compared: ComparedRuns) -> str:
    """Return everything as JSON."""
    content = {
        "runs": [_described(run) for run in compared.runs],
        "comparisons": [_plain(row) for row in compared.rows],
        "notes": list(compared.notes),
        "warnings": list(compared.warnings),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _titles(corrected: bool) -> list[str]:
    return [text for title in TITLES for text in ((title, "p Holm") if corrected and title == "p" else (title,))]


def _cells(row: Comparison, corrected: bool) -> list[str]:
    drawn = row.difference
    test = row.test if row.mcnemar is None else f"{row.test} ({row.mcnemar.only_first}:{row.mcnemar.only_second})"
    return [
        row.task,
        f"{row.metric} {'↑' if row.higher_is_better else '↓'}",
        f"{row.second.identity} {row.second.method}",
        f"{row.values[0]:.4f}",
        f"{row.values[1]:.4f}",
        f"{drawn.difference:+.4f}",
        f"[{drawn.lower:+.4f}, {drawn.upper:+.4f}]",
        _p_value(row.p_value),
        *([_p_value(row.p_corrected)] if corrected else []),
        test,
        str(row.documents),
        row.verdict,
    ]


def _p_value(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def _plain(row: Comparison) -> dict[str, Any]:
    exact = row.mcnemar
    return {
        "task": row.task,
        "metric": row.metric,
        "higher_is_better": row.higher_is_better,
        "first": row.first.identity,
        "run": row.second.identity,
        "method": row.second.method,
        "first_value": row.values[0],
        "run_value": row.values[1],
        "difference": row.difference.difference,
        "lower_95": row.difference.lower,
        "upper_95": row.difference.upper,
        "permutation_p": row.difference.p_value,
        "mcnemar_p": None if exact is None else exact.p_value,
        "only_first_right": None if exact is None else exact.only_first,
        "only_run_right": None if exact is None else exact.only_second,
        "test": row.test,
        "p": row.p_value,
        "p_holm": row.p_corrected,
        "documents": row.documents,
        "verdict": row.verdict,
    }


def _label(run: StoredResult) -> str:
    seed = "" if run.seed is None else f", seed {run.seed}"
    return f"{run.model} {run.method}{seed}"


def _described(run: StoredResult) -> Mapping[str, Any]:
    return {
        "identity": run.identity,
        "path": str(run.path),
        "model": run.model,
        "method": run.method,
        "seed": run.seed,
        "recipe_sha256": run.recipe_sha256,
        "date": run.date.isoformat(),
    }
