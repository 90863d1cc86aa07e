"""`lowbit leaderboard`: the runs of a results directory, ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lowbit.untrusted import printable

FORMATS = ("table", "markdown", "csv", "latex")


@click.command("leaderboard")
@click.argument("folder", metavar="DIR", default="lowbit_results")
@click.option(
    "--columns",
    help="Names by comma: method, bits.file, TASK, TASK.METRIC, recovery, recovery.TASK, ...; `--columns help` lists "
    "those of DIR.",
)
@click.option("--sort", help="Column that decides the order within a model, best first; `-NAME` turns it round.")
@click.option(
    "--runs",
    type=click.Choice(["mean", "latest", "all"]),
    default="mean",
    show_default=True,
    help="Several runs of one recipe: mean over seeds, the latest run, or a row each.",
)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print it."
)
@click.option("--models", help="Only these models, by comma.")
@click.option("--methods", help="Only these methods and the parents, by comma.")
@click.option("--underline_second", is_flag=True, help="Underline the second best of each model.")
@click.option("--output_path", "-o", help="File to write instead of printing.")
def command(**values: Any) -> int:
    """Rank the runs of a results directory, grouped by model, parents first.

    DIR is what was given to `lowbit bench --output_path`. Seeds of one recipe are averaged. Numbers that were not
    measured in the same way never share a column: each way has its own, and a line below says what it is.
    """
    from lowbit.errors import LowbitError
    from lowbit.results.leaderboard import build_leaderboard, column_names
    from lowbit.results.leaderboard_text import write_table
    from lowbit.results.store import read_results

    found = read_results(Path(values["folder"]))
    for path, reason in found.unreadable:
        click.echo(printable(f"lowbit: warning: {path} is left out: it {reason}"), err=True)
    if not found.results:
        raise LowbitError(f"there is no result in {found.folder}; `lowbit bench -o {found.folder}` puts one there")
    if values["columns"] == "help":
        click.echo(printable("\n".join(column_names(found.results))))
        return 0
    results = _chosen(found.results, _split(values["models"]), _split(values["methods"]))
    board = build_leaderboard(results, _split(values["columns"]), values["sort"], values["runs"])
    if values["output_path"] is None:
        _print(board, values["form"], values["underline_second"])
    else:
        write_table(Path(values["output_path"]), _text(board, values["form"], values["underline_second"]))
    return 0


def _split(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _chosen(results: Any, models: list[str], methods: list[str]) -> list[Any]:
    from lowbit.errors import LowbitError

    for kind, wanted, known in (
        ("model", models, {result.model for result in results}),
        ("method", methods, {result.method for result in results}),
    ):
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise LowbitError(f"there is no {kind} {unknown[0]!r} here; there are: {', '.join(sorted(known))}")
    return [
        result
        for result in results
        if (not models or result.model in models)
        and (not methods or result.method in methods or result.role == "parent")
    ]


def _print(board: Any, form: str, underline_second: bool) -> None:
    from lowbit.cli.console import output
    from lowbit.results.leaderboard_text import render

    if form == "table":
        output().print(render(board, underline_second))
    else:
        click.echo(_text(board, form, underline_second), nl=False)


def _text(board: Any, form: str, underline_second: bool) -> str:
    from lowbit.errors import LowbitError
    from lowbit.results.leaderboard_text import to_csv, to_latex, to_markdown

    if form == "table":
        raise LowbitError("a terminal table cannot be written to a file; give --format markdown, csv or latex")
    if form == "csv":
        return to_csv(board)
    return to_latex(board, underline_second) if form == "latex" else to_markdown(board, underline_second)
