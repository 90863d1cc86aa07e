"""`lowbit compare`: do runs differ by more than chance, on the same documents?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.untrusted import printable

if TYPE_CHECKING:
    from lowbit.results.comparison import ComparedRuns
    from lowbit.results.store import StoredResult

FORMATS = ("table", "json", "markdown", "csv")


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option(
    "--results", "results", default="lowbit_results", show_default=True, help="Directory in which identities are found."
)
@click.option("--tasks", "-t", help="Tasks to compare, by comma; none: those that all runs have.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print it."
)
@click.option("--resamples", type=click.IntRange(min=100), default=10_000, show_default=True, help="Number of draws.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides the draws.")
def command(**values: Any) -> int:
    """Say whether runs differ by more than chance, on the same documents; all against the first one.

    RUN is a result file, a folder with one result, or an identity as `lowbit leaderboard --columns identity,...` shows
    it. The runs must have been made with --log_samples.
    """
    from lowbit.results.comparison import compare_runs

    found = [_find(text, Path(values["results"])) for text in values["runs"]]
    tasks = [name for name in (values["tasks"] or "").split(",") if name]
    compared = compare_runs(found, _beside(found), tasks, values["seed"], values["resamples"])
    _show(compared, values["form"])
    for warning in compared.warnings:
        click.echo(printable(f"lowbit: warning: {warning}"), err=True)
    return 0


def _find(text: str, folder: Path) -> StoredResult:
    from lowbit.errors import LowbitError
    from lowbit.results.store import read_result, read_results

    path = Path(text)
    if _is(path.is_file):
        try:
            result = read_result(path)
        except LowbitError as error:
            raise LowbitError(f"{path} {error}") from error
        if result is None:
            raise LowbitError(f"{path} is no result: it has no section `results` of tasks and their metrics")
        return result
    if _is(path.is_dir):
        inside = read_results(path)
        if len(inside.results) == 1:
            return inside.results[0]
        listed = ", ".join(f"{run.identity} ({run.model} {run.method})" for run in inside.results) or "none"
        raise LowbitError(
            f"{path} holds {len(inside.results)} results where one was expected: {listed}{inside.told_unreadable}"
        )
    if not _is(folder.exists):
        raise LowbitError(f"{text} is no file and no folder, and to look it up as an identity --results DIR is needed")
    return read_results(folder).find(text)


def _is(question: Callable[[], bool]) -> bool:
    """Ask something about a path; a name that no file can have is none of a file."""
    try:
        return question()
    except (OSError, ValueError):
        return False


def _beside(runs: list[StoredResult]) -> list[StoredResult]:
    """Return the results in the folders that the runs lie in, where runs with other seeds are."""
    from lowbit.results.store import read_neighbours

    folders = {run.path.resolve().parent for run in runs}
    return [result for folder in sorted(folders) for result in read_neighbours(folder)]


def _show(compared: ComparedRuns, form: str) -> None:
    from lowbit.cli.console import output
    from lowbit.results import comparison_text

    if form == "table":
        output().print(comparison_text.render(compared))
        for line in comparison_text.explanations(compared):
            click.echo(printable(line))
    else:
        writers = {"json": comparison_text.to_json, "csv": comparison_text.to_csv}
        click.echo(writers.get(form, comparison_text.to_markdown)(compared), nl=False)
