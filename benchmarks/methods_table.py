"""Makes the table of all methods: perplexity against the bits of the file, over group sizes and calibration seeds.

    python benchmarks/methods_table.py MODEL... --data_dir DIR -o FOLDER --workers 2
    python benchmarks/methods_table.py -o FOLDER --render --markdown

Every method of the registry runs on the embedded model and on every MODEL folder, at each group size and at its own
default where that is another, with each calibration seed; once where a method uses no calibration. A group is the
quantizer's `group_size`, or its `block_size` where it has no other. The embedded model is calibrated on the embedded
text and judged by `smallworld_text`, every page of it; the others are calibrated on WikiText-2's training split and
judged by its test split. All is computed in float32, on one thread for each worker.

A cell is one method, model, group size and seed. It goes to a file of its own in FOLDER/cells, and the same command
leaves out the cells that are there; cells made by other settings, packages or plugins, and failed ones, are made anew.
A change of lowbit's core is not seen: use another FOLDER. Checkpoints are deleted as soon as they are judged.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import click
from command_line import run
from methods_cells import (
    CELLS,
    PARENT,
    Cell,
    Job,
    Settings,
    finished,
    method_names,
    plan,
    read_cell,
    run_job,
    start_worker,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lowbit.durable import make_directory
from lowbit.errors import LowbitError

TITLES = ("method", "group", "seeds", "bits nominal", "bits linear", "bits file", "perplexity", "x parent")


def run_all(jobs: Sequence[Job], settings: Settings, folder: Path, workers: int, console: Console) -> list[Cell]:
    """Return the cells of all jobs, making those that are not finished; parents come first.

    Args:
        jobs: As `plan` yields them.
        settings: Hold for all of them.
        folder: Keeps cells and parents.
        workers: Processes of one thread.
        console: Is told of every cell as it is made.
    """
    make_directory(folder / CELLS)
    models = list(dict.fromkeys(job.model for job in jobs))
    parents = [Job(model, PARENT, None, jobs[0].seed) for model in models]
    stages = [[(job, finished(job, settings, folder)) for job in stage] for stage in (parents, jobs)]
    cells = [cell for stage in stages for _, cell in stage if cell is not None]
    missing = [[job for job, cell in stage if cell is None] for stage in stages]
    console.print(f"{len(cells)} cells are there, {sum(map(len, missing))} are to be made", highlight=False)
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker)
    started = time.monotonic()
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("cells", total=sum(map(len, missing)))
            for stage in missing:
                for future in as_completed([pool.submit(run_job, job, settings, folder) for job in stage]):
                    cells.append(future.result())
                    progress.advance(task)
                    line = f"{time.monotonic() - started:6.0f} s  {summary(cells[-1])}"
                    console.print(line, highlight=False, soft_wrap=True)
    except BrokenProcessPool as error:
        raise LowbitError("a worker was ended, perhaps for lack of memory; repeat the command to continue") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return cells


def summary(cell: Cell) -> str:
    """Return a cell in a line."""
    name = f"{cell.model} {cell.method} group {cell.group} seed {cell.seed}"
    if cell.error is not None or cell.bits is None:
        return f"{name}: FAILED: {cell.error}"
    return f"{name}: {cell.bits[2]:.3f} bits, {cell.metric} {number(cell.perplexity)}"


def number(value: float | None) -> str:
    """Return a perplexity as text, with at least four digits that count."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def table_rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Return the rows of one model's table, by file bits; failed cells come last.

    Args:
        cells: All of one model.
    """
    good = [cell for cell in cells if cell.error is None]
    parent = next((cell.perplexity for cell in good if cell.method == PARENT), None)
    together: dict[tuple[str, int | None], list[Cell]] = {}
    for cell in good:
        together.setdefault((cell.method, cell.group), []).append(cell)
    rows = []
    for (method, group), seeds in together.items():
        bits = [statistics.median(values) for values in zip(*(cell.bits or () for cell in seeds), strict=True)]
        values = [math.inf if cell.perplexity is None else cell.perplexity for cell in seeds]
        middle = statistics.median(values)
        spread = f" ({number(min(values))} to {number(max(values))})" if len(seeds) > 1 else ""
        ratio = "-" if parent is None else number(middle / parent)
        name = "parent" if method == PARENT else method
        columns = {None: "-", -1: "row"}.get(group, str(group))
        text = [name, columns, str(len(seeds)), *(f"{value:.2f}" for value in bits), number(middle) + spread, ratio]
        rows.append((bits[2], middle, text))
    failed = [
        [cell.method, str(cell.group), f"seed {cell.seed}", "failed", "", "", "", ""] for cell in cells if cell.error
    ]
    return [text for _, _, text in sorted(rows)] + failed


def describe(cells: Sequence[Cell]) -> str:
    """Say how the cells were made: dates, seeds, data and versions."""
    dates = sorted(cell.date for cell in cells)
    seeds = ", ".join(map(str, sorted({cell.seed for cell in cells})))
    versions = sorted({f"{name} {version}" for cell in cells for name, version in cell.signature["versions"].items()})
    plugins = sorted({f"{name} {version}" for cell in cells for name, version in cell.signature["plugins"].items()})
    return (
        f"{len(cells)} cells made from {dates[0]} to {dates[-1]}; seeds {seeds}; float32; "
        "calibration on training splits, evaluation on test splits. "
        f"Versions: {', '.join(versions)}. Plugins: {', '.join(plugins)}. "
        "Perplexity: the median over calibration seeds, in brackets the lowest and the highest; seeds: how many."
    )


def describe_model(cells: Sequence[Cell]) -> str:
    """Say what one model was calibrated on and judged by."""
    judged = sorted({f"{cell.metric} of {cell.task} ({cell.evaluated})" for cell in cells if cell.error is None})
    records = [cell.calibration for cell in cells if cell.calibration]
    calibrated = sorted({f"{r['n_samples']} x {r['seq_len']} tokens of {r['name']}" for r in records})
    return f"judged by {'; '.join(judged) or 'nothing yet'}; calibrated on {'; '.join(calibrated) or 'nothing'}."


def print_tables(cells: Sequence[Cell], markdown: bool) -> None:
    """Print a table for each model."""
    click.echo(describe(cells))
    by_model: dict[str, list[Cell]] = {}
    for cell in cells:
        by_model.setdefault(cell.model, []).append(cell)
    for model, members in by_model.items():
        rows = table_rows(members)
        click.echo(f"\n### {model}\n\n{model}: {describe_model(members)}\n")
        if markdown:
            lines = [TITLES, ("---", *["---:"] * 7), *rows]
            click.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
            continue
        table = Table()
        for title in TITLES:
            table.add_column(title, justify="left" if title == "method" else "right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    for cell in cells:
        if cell.error is not None:
            click.echo(summary(cell), err=True)


def _numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not whole numbers joined by commas") from None


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, file_okay=False))
@click.option(
    "--embedded/--no_embedded", default=True, show_default=True, help="Whether the embedded model takes part."
)
@click.option("--methods", help="Names joined by commas; by default every method, each once.")
@click.option("--groups", default="32,64,128", show_default=True, callback=_numbers)
@click.option("--seeds", default="0,1,2", show_default=True, callback=_numbers)
@click.option("--data_dir", type=click.Path(exists=True, file_okay=False), help="Local mirror of hub data sets.")
@click.option("--n_samples", default=32, show_default=True)
@click.option("--seq_len", default=256, show_default=True, help="Tokens of calibration sequences and windows.")
@click.option("--limit", default=100, show_default=True, help="Windows of WikiText-2 that are evaluated; 0 for all.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("methods_table"))
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes of one thread.")
@click.option("--render", is_flag=True, help="Make nothing; print every cell that is there.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
def main(
    models: tuple[str, ...],
    embedded: bool,
    methods: str | None,
    groups: list[int],
    seeds: list[int],
    data_dir: str | None,
    n_samples: int,
    seq_len: int,
    limit: int,
    output: Path,
    workers: int,
    render: bool,
    markdown: bool,
) -> None:
    """Make what is missing and print the tables; the exit code is 1 where a cell failed."""
    if render:
        cells = [read_cell(file) for file in sorted((output / CELLS).glob("*.json"))]
    else:
        chosen: list[str | None] = [*([None] if embedded else []), *models]
        jobs = list(plan(chosen, methods.split(",") if methods else method_names(), groups, seeds))
        if len({job.file_name for job in jobs}) < len(jobs):
            raise LowbitError("two jobs would have the same cell: names of model folders and values must differ")
        settings = Settings(data_dir, n_samples, seq_len, limit or None)
        cells = run_all(jobs, settings, output, workers, Console(stderr=True))
    if not cells:
        raise LowbitError(f"there are no cells in {output / CELLS}")
    print_tables(cells, markdown)
    sys.exit(1 if any(cell.error for cell in cells) else 0)


if __name__ == "__main__":
    run(main)
