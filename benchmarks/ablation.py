"""Makes the ablation of DB-LLM's training: every variant changes one thing of a base recipe, over several seeds.

    python benchmarks/ablation.py --preset quick --split validation -o FOLDER --workers 2
    python benchmarks/ablation.py MODEL --data_dir DIR --config FILE --split validation -o FOLDER
    python benchmarks/ablation.py -o FOLDER --render --markdown --plot ablation.svg

The base is the method `dbllm` with a preset, or a recipe FILE. Variants change, one at a time, the initialisation, the
orientation, the gradient rule, whether latent weights are trained, the stages of training, the loss, and the training
tokens; peers quantize otherwise. --list shows each with its overrides, which are those of `--set`. A variant that is
the base itself, or another variant under a second name, shares its cells.

The budget is the tokens that training processes. It is the base's for every trained variant but those that leave a
stage out or add one; for these there is a second row whose steps were moved to the other stage. An early stop shows in
the column `tokens / base`. `ce`, `kl` and `dad` with mixing 0 have the same gradient; what parts them is rounding.

The seed decides the calibration windows, the generated tokens, the order of the sequences and every draw of the
quantizer; not the text that judges. Variants in which none of these plays a part run once, with the first seed.

Defaults are chosen on `--split validation`: WikiText-2's validation split, or, for the embedded model, the last 15 % of
the documents of its calibration text, from which nothing is calibrated then (the parent was trained on that text).
`--split test` is WikiText-2's test split, or `smallworld_text`; nothing may be chosen by it. The perplexity is that of
`lowbit bench`: by token on windows of WikiText-2, by word on the embedded pages; float32, dense weights, read from the
checkpoint.

A cell is one recipe and seed; it lies in a file of its own in FOLDER/cells, and the same command leaves out the cells
that are there. Cells made by other settings, packages or plugins, and failed ones, are made anew; of lowbit's core a
cell only records the state, and the table says when there were several. A training that was interrupted continues.
Variants of one seed share the tokens that the parent generates; checkpoints are deleted as soon as they are judged.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
from ablation_cells import (
    AblationCell,
    AblationJob,
    finished,
    generation_key,
    is_seeded,
    read_cell,
    recipe_key,
    recipe_of,
    run_job,
    write_generated,
)
from ablation_plot import draw
from ablation_report import figure, make_report, print_report
from ablation_texts import Settings, write_texts
from ablation_variants import Variant, matching, variants_of
from command_line import run
from methods_cells import CELLS, start_worker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowbit.durable import make_directory, write_json
from lowbit.errors import LowbitError
from lowbit.recipe import read_recipe_file

PLAN = "plan.json"
PRESET = "quick"


def plan_jobs(variants: Sequence[Variant], seeds: Sequence[int], settings: Settings) -> list[AblationJob]:
    """Return a job for every recipe and seed, each once, all of the first seed before any of the second."""
    recipes = [(variant, recipe_of(_job(variant, seeds[0]), settings)) for variant in variants]
    unique = {recipe_key(recipe): (variant, is_seeded(recipe)) for variant, recipe in reversed(recipes)}
    chosen = [unique[key] for key in dict.fromkeys(recipe_key(recipe) for _, recipe in recipes)]
    return [_job(variant, seed) for seed in seeds for variant, seeded in chosen if seeded or seed == seeds[0]]


def _job(variant: Variant, seed: int) -> AblationJob:
    return AblationJob(f"{variant.group}/{variant.name}", variant.overrides, seed)


def write_plan(variants: Sequence[Variant], seeds: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Write down which recipes the table's rows are, and return it.

    Raises:
        LowbitError: The folder holds the ablation of another model or split.
    """
    file = settings.folder / PLAN
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, value in (("model", settings.model_name), ("split", settings.split)):
        if before.get(name, value) != value:
            raise LowbitError(f"{settings.folder} holds the {name} {before[name]!r}, not {value!r}: use another -o")
    base = recipe_of(_job(variants[0], seeds[0]), settings)
    plan = {
        "model": settings.model_name,
        "split": settings.split,
        "method": base.method,
        "from": "a configuration" if settings.config else f"preset {base.preset}",
        "base": base.to_dict(),
        "base_sha256": base.sha256(),
        "seeds": sorted({*seeds, *before.get("seeds", ())} if before.get("base") == base.to_dict() else seeds),
        "parent": recipe_key(recipe_of(AblationJob("parent", None, seeds[0]), settings)),
        "variants": [
            asdict(variant) | {"key": recipe_key(recipe), "seeded": is_seeded(recipe)}
            for variant, recipe in ((variant, recipe_of(_job(variant, seeds[0]), settings)) for variant in variants)
        ],
    }
    make_directory(settings.folder)
    write_json(file, plan)
    return plan


def make_cells(jobs: Sequence[AblationJob], settings: Settings, workers: int, console: Console) -> None:
    """Make every cell that is not finished: the parent's, then generated tokens, then those of the variants.

    Args:
        jobs: As `plan_jobs` returns them.
        settings: Hold for all of them.
        workers: Processes of one thread.
        console: Is told of every cell as it is made.

    Raises:
        LowbitError: A worker was ended, or finds other code than the command started with.
    """
    make_directory(settings.folder / CELLS)
    write_texts(settings)
    wanted = [AblationJob("parent", None, jobs[0].seed), *jobs]
    missing = [job for job in wanted if finished(job, settings) is None]
    keys = {recipe_key(recipe_of(job, settings)) for job in wanted}
    console.print(f"{len(wanted) - len(missing)} cells are there, {len(missing)} are to be made", highlight=False)
    generated = {key: job for job in missing if (key := generation_key(job, settings)) is not None}
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    os.environ |= dict.fromkeys(threads, "1") | {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker)
    started = time.monotonic()
    try:
        with Progress(*columns, console=console) as progress:
            for name, function, stage in (
                ("generated tokens", write_generated, list(generated.values())),
                ("cells", run_job, missing),
            ):
                task = progress.add_task(name, total=len(stage))
                for made in _results(pool, function, stage, settings):
                    progress.advance(task)
                    if isinstance(made, AblationCell):
                        if made.key not in keys:
                            raise LowbitError("lowbit's code changed since the command started: repeat the command")
                        line = f"{time.monotonic() - started:6.0f} s  {summary(made)}"
                        console.print(line, highlight=False, soft_wrap=True)
    except BrokenProcessPool as error:
        raise LowbitError("a worker was ended, perhaps for lack of memory; repeat the command to continue") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _results(
    pool: ProcessPoolExecutor, function: Callable[..., Any], jobs: Sequence[AblationJob], settings: Settings
) -> Iterable[Any]:
    for future in as_completed([pool.submit(function, job, settings) for job in jobs]):
        yield future.result()


def summary(cell: AblationCell) -> str:
    """Return a cell in a line."""
    if cell.error is not None:
        return f"{cell.label} seed {cell.seed}: FAILED: {cell.error}"
    took = "" if cell.seconds is None else f", {cell.tokens} training tokens, {cell.seconds:.0f} s"
    value = math.inf if cell.perplexity is None else cell.perplexity
    return f"{cell.label} seed {cell.seed}: {cell.metric} {figure(value)}{took}"


def list_variants(variants: Sequence[Variant]) -> None:
    """Print every variant with its overrides."""
    for variant in variants:
        remark = f" ({variant.budget})" if variant.budget else ""
        click.echo(f"{variant.group}/{variant.name}{remark}")
        for override in variant.overrides:
            click.echo(f"    --set {shlex.quote(override)}")


def _numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not whole numbers joined by commas") from None


@click.command(help=__doc__)
@click.argument("model", required=False, type=click.Path(exists=True, file_okay=False))
@click.option("--preset", help=f"Of dbllm, for the base recipe; {PRESET} unless a --config is given.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Recipe file of the base.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation", show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True, callback=_numbers)
@click.option("--only", multiple=True, help="Variants whose group, name or group/name fits the pattern; repeatable.")
@click.option("--data_dir", type=click.Path(exists=True, file_okay=False), help="Local mirror of hub data sets.")
@click.option("--n_samples", type=click.IntRange(min=1), help="Calibration sequences; as the base recipe says.")
@click.option("--seq_len", type=click.IntRange(min=2), help="Tokens of a calibration sequence; as the base says.")
@click.option("--context_length", default=256, show_default=True, help="Tokens of an evaluated window, at most.")
@click.option("--limit", default=100, show_default=True, help="Windows of WikiText-2 that are evaluated; 0 for all.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("ablation"))
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes of one thread.")
@click.option("--list", "listed", is_flag=True, help="Make nothing; print the variants and their overrides.")
@click.option("--render", is_flag=True, help="Make nothing; print every cell that is there.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw into this .svg, .png or .pdf.")
def main(
    model: str | None,
    preset: str | None,
    config: Path | None,
    split: Any,
    seeds: list[int],
    only: tuple[str, ...],
    data_dir: str | None,
    n_samples: int | None,
    seq_len: int | None,
    context_length: int,
    limit: int,
    output: Path,
    workers: int,
    listed: bool,
    render: bool,
    markdown: bool,
    plot: Path | None,
) -> None:
    """Make what is missing, print the table and draw; the exit code is 1 where a cell failed."""
    if render:
        if not (output / PLAN).is_file():
            raise LowbitError(f"there is no ablation in {output}")
        plan = json.loads((output / PLAN).read_text(encoding="utf-8"))
    else:
        content = {} if config is None else read_recipe_file(config)
        named = preset or (None if config is not None else PRESET)
        shown = None if model is None else limit or None
        settings = Settings(output, model, split, data_dir, named, content, n_samples, seq_len, context_length, shown)
        variants = variants_of(recipe_of(AblationJob("base", (), seeds[0]), settings))
        chosen = matching(variants, only)
        if listed:
            list_variants(chosen)
            return
        jobs = plan_jobs(chosen, seeds, settings)
        plan = write_plan(variants, seeds, settings)
        make_cells(jobs, settings, workers, Console(stderr=True))
    report = make_report(plan, [read_cell(file) for file in sorted((output / CELLS).glob("*.json"))])
    if not report.cells and not report.failed:
        raise LowbitError(f"there are no cells of a variant in {output / CELLS}")
    print_report(report, markdown)
    if plot is not None:
        draw(report, plot)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    run(main)
