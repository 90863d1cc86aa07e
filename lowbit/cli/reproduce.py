"""`lowbit reproduce`: run what a paper published, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import plugin_options, recipe_flags, verbosity_options

if TYPE_CHECKING:
    from lowbit.pipeline.reproduce import Reproduction
    from lowbit.pipeline.reproduction_plan import Plan

DEFAULT_OUTPUT = "lowbit_results"


@click.command("reproduce")
@click.option("--paper", help="Name of a paper; `lowbit plugins list` shows them.")
@click.option("--targets", type=click.Path(dir_okay=False), help="File of published results of your own (JSON).")
@click.option("--model", "-M", help="Folder or hub id; none: the embedded model.")
@click.option("--metric", "metrics", multiple=True, help="Only these tasks or metrics, by comma.")
@click.option("--row", "rows", multiple=True, help="Only rows whose name holds this text; repeatable.")
@click.option("--calibration", metavar="NAME|FILE", help="In place of the published calibration set.")
@click.option("--n_samples", "--nsamples", type=int, help="In place of the published number of sequences.")
@click.option("--seq_len", "--seqlen", type=int, help="In place of the published tokens a sequence.")
@click.option("--seed", help="In place of the published seed.")
@click.option("--limit", "-L", type=float, help="Documents or windows a task, or a fraction when below 1.")
@click.option("--batch_size", "-b", help="A number, auto or auto:N.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), help="For evaluation.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--trust_remote_code", is_flag=True, default=None, help="Run code that comes with the model.")
@click.option("--data_dir", envvar="LOWBIT_DATA_DIR", help="Local mirror of hub data sets; no network then.")
@click.option("--device", default="cpu", show_default=True, help="Where models are worked on and evaluated.")
@click.option("--output_path", "-o", default=DEFAULT_OUTPUT, show_default=True, help="Folder of results.")
@click.option("--refresh_parent", is_flag=True, help="Evaluate the unquantized model again.")
@click.option("--dry_run", is_flag=True, help="Print cells, recipes and protocol; run nothing.")
@plugin_options
@verbosity_options
def command(**values: Any) -> int:
    """Run the cells that a paper published for a model, under its protocol, and compare.

    PASS: the relative difference is within the cell's tolerance (5 % where it names none); NEAR: within twice the
    tolerance; FAIL: beyond, on either side. The unquantized model comes first: where its number is off by more than
    1 %, the protocol is another one. The exit code is 0 when no cell fails, else 1.
    """
    from pathlib import Path

    from lowbit.cli.startup import start
    from lowbit.pipeline.published import cells_for, only, published_results
    from lowbit.pipeline.reproduction_plan import make_plan

    registry = start(values["plugins"])
    targets = None if values["targets"] is None else Path(values["targets"])
    results = published_results(registry, values["paper"], targets)
    metrics = [part for value in values["metrics"] for part in value.split(",") if part]
    cells = only(cells_for(results, values["model"]), metrics, values["rows"])
    plan = make_plan(results, cells, values["model"], recipe_flags(values))
    if values["dry_run"]:
        _print_plan(plan)
        return 0
    return _run(plan, values)


def _run(plan: Plan, values: dict[str, Any]) -> int:
    from pathlib import Path

    from lowbit.cli.progress import progress
    from lowbit.distillation.processes import is_main_process, part_from_others
    from lowbit.embedded import task_configs
    from lowbit.pipeline.bench import BenchOptions
    from lowbit.pipeline.reproduce import reproduce
    from lowbit.pipeline.reproduction_record import write_reproduction

    folder = Path(values["output_path"])
    with progress(values["verbosity"], [run.recipe for run in plan.runs]) as announce:
        options = BenchOptions(
            output_path=folder,
            device=values["device"],
            announce=announce,
            refresh_parent=values["refresh_parent"],
            extra_tasks=task_configs(),
        )
        found = reproduce(plan, options)
    part_from_others()
    if not is_main_process():
        return 0
    path = write_reproduction(found, folder, values["device"])
    return _show(found, str(path))


def _show(found: Reproduction, path: str) -> int:
    """Print the table and what must be known beside it, and return the exit code."""
    from lowbit.cli.console import output
    from lowbit.results.reproduction import Verdict, counts, protocol_differs, render_reproduction

    for change in found.plan.changes:
        click.echo(f"lowbit: warning: not the published protocol: {change}", err=True)
    for parent in protocol_differs(found.parents):
        ours = "no number" if parent.ours is None else f"{parent.ours:.2f}"
        click.secho(
            f"lowbit: WARNING: THE PROTOCOL DIFFERS: the unquantized model's {parent.metric} is {ours}, published "
            f"{parent.published:g} ({parent.source}); the verdicts compare unlike with unlike",
            fg="red",
            bold=True,
            err=True,
        )
    output().print(render_reproduction(found.parents, found.cells))
    number = counts(found.cells)
    click.echo(", ".join(f"{count} {verdict}" for verdict, count in number.items() if count) + f"; {path}")
    return 1 if number[Verdict.FAIL] else 0


def _print_plan(plan: Plan) -> None:
    from rich.table import Table

    from lowbit.cli.console import add_row, output
    from lowbit.pipeline.reproduction_plan import about, metric_text

    results = plan.results
    arxiv = f" (arXiv {results.arxiv})" if results.arxiv else ""
    click.echo(f"{results.paper}: {results.title}{arxiv}; model {plan.model or 'embedded'}")
    click.echo(f"protocol: {_stated(results.protocol.model_dump())}")
    for note in results.protocol_notes:
        click.echo(f"  {note}")
    for change in plan.changes:
        click.echo(f"not the published protocol: {change}")
    table = Table("run", "row", "metric", "published", "unquantized", "tolerance %", "source")
    for number, run in enumerate(plan.runs, 1):
        for cell in run.cells:
            parent = "-" if cell.parent is None else f"{cell.parent:g}"
            tolerance = f"{100 * results.tolerance_of(cell):g}"
            metric = metric_text(cell, results)
            add_row(table, str(number), cell.label, metric, f"{cell.value:g}", parent, tolerance, about(cell))
    output().print(table)
    for number, run in enumerate(plan.runs, 1):
        recipe = run.recipe
        options = {} if recipe.quantizer is None else recipe.quantizer.model_dump()
        calibration = _stated({**recipe.calibration.model_dump(), "seed": recipe.seed})
        click.echo(f"run {number}: {recipe.method}: {_stated(options)}")
        click.echo(f"  calibration: {calibration}; tasks: {', '.join(recipe.eval.tasks)}")
    for cell in plan.cells:
        if cell.identity in plan.skipped:
            metric = metric_text(cell, results)
            click.echo(f"not run: {cell.label}, {metric} {cell.value:g} ({cell.source}): {plan.skipped[cell.identity]}")


def _stated(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
