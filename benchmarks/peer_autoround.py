"""Compares methods of lowbit with auto-round: the same calibration tokens, the same evaluation, bits as stored.

    python benchmarks/peer_autoround.py MODEL... --data_dir DIR -o FOLDER --environment ENVIRONMENT
    python benchmarks/peer_autoround.py --method dbllm,gptq:64 -o FOLDER --markdown

auto-round quantizes to 2 bits (its scheme W2A16) in groups of 32 with 200 iterations and its other defaults, in a
virtual environment of its own, which is made and filled from the package index when it is absent. It is given the very
tokens that lowbit's methods are calibrated on. What it stores is dequantized to a plain checkpoint that is judged
exactly as lowbit's own: `smallworld_text` for the embedded model, WikiText-2's test split for every MODEL folder.

auto-round is symmetric by default; `auto-round-asym` is its asymmetric form, and `-fp32` either one without its default
of computing in bfloat16. All of them store zero points: 2.56 bits a weight at group 32. auto-round leaves layers alone
of which either width is no multiple of 32; they count with the bits that they are stored in. Everything runs on one
thread; seconds are of quantization and writing.

A cell is one method, model, group size and seed, and goes to a file of its own in FOLDER/cells; the same command
leaves out the cells that are there. FOLDER/reports says what auto-round computed with: versions, settings, bits.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from command_line import run
from methods_cells import CELLS, PARENT, Cell, Job, Settings, group_option, read_cell, start_worker
from methods_table import describe, describe_model, run_all, summary
from peer_autoround_cells import PEERS, finished_peer, plan_peers, prepare_environment, run_peer
from rich.console import Console
from rich.table import Table

from lowbit.errors import LowbitError

TITLES = ("method", "group", "seeds", "bits linear", "perplexity", "x parent", "seconds")


def plan_methods(models: Sequence[str | None], methods: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return the jobs of lowbit's methods, once where calibration plays no part.

    Args:
        models: Folders; `None` is the embedded model.
        methods: Names; a group size other than a method's own default stands behind a colon.
        seeds: Of calibration.

    Raises:
        LowbitError: A method is unknown, or what stands behind its colon is no group size that it could have.
    """
    jobs = []
    for text in methods:
        name, colon, size = text.partition(":")
        option, default, calibrated = group_option(name)
        if colon and (option is None or not size.isdigit()):
            raise LowbitError(f"{text!r} needs a number behind the colon, and a method that has groups")
        group = int(size) if colon else default
        jobs += [Job(model, name, group, seed) for seed in (seeds if calibrated else seeds[:1]) for model in models]
    return jobs


def run_peers(
    jobs: Sequence[Job], settings: Settings, iterations: int, environment: Path, folder: Path, console: Console
) -> list[Cell]:
    """Return auto-round's cells, making those that are not finished; only then its environment is needed."""
    cells = []
    python = None
    for job in jobs:
        cell = finished_peer(job, settings, iterations, folder)
        if cell is None:
            if python is None:
                console.print(f"auto-round's environment is {environment}", highlight=False)
                python = prepare_environment(environment)
            cell = run_peer(job, settings, iterations, python, folder)
            console.print(summary(cell), highlight=False, soft_wrap=True)
        cells.append(cell)
    return cells


def figure(value: float) -> str:
    """Return a number as text, with at least four digits that count."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def table_rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Return the rows of one model's table: the parent, the peer, then lowbit's methods; failed cells come last.

    Args:
        cells: All of one model.
    """
    good = [cell for cell in cells if cell.error is None]
    parent = next((cell.perplexity for cell in good if cell.method == PARENT), None)
    together: dict[tuple[str, int | None], list[Cell]] = {}
    for cell in sorted(good, key=lambda cell: 0 if cell.method == PARENT else 1 if cell.method in PEERS else 2):
        together.setdefault((cell.method, cell.group), []).append(cell)
    rows = []
    for (method, group), seeds in together.items():
        values = [math.inf if cell.perplexity is None else cell.perplexity for cell in seeds]
        middle = statistics.median(values)
        spread = f" ({figure(min(values))} to {figure(max(values))})" if len(seeds) > 1 else ""
        bits = [cell.bits[1] for cell in seeds if cell.bits is not None]
        times = [cell.seconds for cell in seeds if cell.seconds is not None]
        rows.append(
            [
                "parent" if method == PARENT else method,
                {None: "-", -1: "row"}.get(group, str(group)),
                str(len(seeds)),
                f"{statistics.median(bits):.2f}",
                figure(middle) + spread,
                "-" if parent is None else figure(middle / parent),
                f"{statistics.median(times):.0f}" if times else "-",
            ]
        )
    failed = [[cell.method, str(cell.group), f"seed {cell.seed}", "failed", "", "", ""] for cell in cells if cell.error]
    return rows + failed


def other_tokens(cells: Sequence[Cell]) -> list[str]:
    """Name the calibrated cells whose tokens are not those of auto-round's cell with the same model and seed."""
    used = {(c.model, c.seed): c.calibration["sha256"] for c in cells if c.method in PEERS and c.calibration}
    return [
        f"{c.model} {c.method} group {c.group} seed {c.seed}"
        for c in cells
        if c.calibration and used.get((c.model, c.seed), c.calibration["sha256"]) != c.calibration["sha256"]
    ]


def print_tables(cells: Sequence[Cell], markdown: bool) -> None:
    """Print a table for each model."""
    click.echo(describe(cells))
    peers = [cell.signature["peer"] for cell in cells if cell.method in PEERS]
    for text in sorted({", ".join(f"{name} {version}" for name, version in p["requirements"].items()) for p in peers}):
        click.echo(f"auto-round's environment: {text}.")
    if strange := other_tokens(cells):
        click.echo(f"NOT calibrated on auto-round's tokens: {'; '.join(strange)}")
    for model in dict.fromkeys(cell.model for cell in cells):
        members = [cell for cell in cells if cell.model == model]
        click.echo(f"\n### {model}\n\n{model}: {describe_model(members)}\n")
        _print_rows(table_rows(members), markdown)
    for cell in cells:
        if cell.error is not None:
            click.echo(summary(cell), err=True)


def _print_rows(rows: Sequence[Sequence[str]], markdown: bool) -> None:
    if markdown:
        lines = [TITLES, ("---", *["---:"] * (len(TITLES) - 1)), *rows]
        click.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    table = Table()
    for title in TITLES:
        table.add_column(title, justify="left" if title == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _split(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


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
@click.option(
    "--method", "methods", default="dbllm-ptq,gptq", show_default=True, callback=_split, help="As NAME or NAME:GROUP."
)
@click.option("--peer", "peers", default="auto-round,auto-round-asym", show_default=True, callback=_split)
@click.option("--group", default=32, show_default=True, help="auto-round's.")
@click.option("--iterations", default=200, show_default=True, help="auto-round's, for each block.")
@click.option("--seeds", default="0", show_default=True, callback=_numbers, help="Of calibration and of auto-round.")
@click.option("--data_dir", type=click.Path(exists=True, file_okay=False), help="Local mirror of hub data sets.")
@click.option("--n_samples", default=32, show_default=True)
@click.option("--seq_len", default=256, show_default=True, help="Tokens of calibration sequences and windows.")
@click.option("--limit", default=100, show_default=True, help="Windows of WikiText-2 that are evaluated; 0 for all.")
@click.option("--environment", type=click.Path(path_type=Path, file_okay=False), default=Path("peer_environment"))
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("peer_autoround"))
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes of lowbit.")
@click.option("--render", is_flag=True, help="Make nothing; print every cell that is there.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
def main(
    models: tuple[str, ...],
    embedded: bool,
    methods: list[str],
    peers: list[str],
    group: int,
    iterations: int,
    seeds: list[int],
    data_dir: str | None,
    n_samples: int,
    seq_len: int,
    limit: int,
    environment: Path,
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
        settings = Settings(data_dir, n_samples, seq_len, limit or None)
        jobs = plan_methods(chosen, methods, seeds)
        rivals = list(plan_peers(chosen, peers, group, seeds))
        if len({job.file_name for job in (*jobs, *rivals)}) < len(jobs) + len(rivals):
            raise LowbitError("two jobs would have the same cell: names of model folders and methods must differ")
        if not jobs:
            raise LowbitError("nothing to compare: give a model and a method")
        console = Console(stderr=True)
        cells = run_all(jobs, settings, output, workers, console)
        start_worker()
        cells += run_peers(rivals, settings, iterations, environment, output, console)
    if not cells:
        raise LowbitError(f"there are no cells in {output / CELLS}")
    print_tables(cells, markdown)
    sys.exit(1 if any(cell.error for cell in cells) else 0)


if __name__ == "__main__":
    run(main)
