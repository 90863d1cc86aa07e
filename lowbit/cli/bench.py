"""`lowbit bench`: quantize, reload, evaluate, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import (
    ManyValues,
    evaluation_options,
    plugin_options,
    recipe_flags,
    recipe_options,
    verbosity_options,
)
from lowbit.untrusted import printable

if TYPE_CHECKING:
    from lowbit.pipeline.bench import BenchOptions
    from lowbit.recipe import Recipe

DEFAULT_OUTPUT = "lowbit_results"


@click.command("bench", cls=ManyValues)
@click.option(
    "--model", "-M", "models", multiple=True, help="Folder or hub id; several by comma; none: the embedded model."
)
@click.option("--method", "methods", multiple=True, help="Methods by comma; none: those that plugins mark as default.")
@click.option(
    "--backend", type=click.Choice(["dense", "packed"]), help="Evaluate dequantized weights, or the packed ones."
)
@click.option("--grid", type=click.Path(dir_okay=False), help="Grid file (YAML): models, methods and seeds to run.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run cells here one after the other, or as tasks of a Ray cluster.",
)
@click.option("--ray_address", help="HOST:PORT of a running cluster's head, or auto; none: a cluster on this machine.")
@click.option("--output_path", "-o", help=f"Folder of results and checkpoints, or a .json file ({DEFAULT_OUTPUT}).")
@click.option("--refresh_parent", is_flag=True, help="Evaluate parents again although their results are kept.")
@click.option("--speed", is_flag=True, help="Time greedy decoding of each packed model beside its dense form.")
@click.option("--dry_run", is_flag=True, help="Forecast memory, disk, time and coverage; read no weight.")
@click.option("--show_config", is_flag=True, help="Print the resolved recipes and stop.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@recipe_options
@evaluation_options
@plugin_options
@verbosity_options
def command(**values: Any) -> int:
    """Quantize models and evaluate them beside their parents.

    lm-eval's `--model` names a backend; here `--model` is the model itself, a folder or a hub id. Everything else has
    lm-eval's names and meaning.
    """
    from lowbit.cli.grid import grid_recipes, only_described
    from lowbit.cli.startup import start

    if values["ray_address"] is not None and values["engine"] != "ray":
        raise click.UsageError("--ray_address is for --engine ray")
    start(values["plugins"])
    recipes = grid_recipes(values, recipe_flags(values))
    if only_described(recipes, values):
        return 0
    return _bench_on_ray(recipes, values) if values["engine"] == "ray" else _bench_here(recipes, values)


def _options(recipes: list[Recipe], values: dict[str, Any], announce: Callable[[str], None]) -> BenchOptions:
    from pathlib import Path

    from lowbit.embedded import task_configs
    from lowbit.pipeline.bench import BenchOptions

    return BenchOptions(
        output_path=Path(values["output_path"] or recipes[0].output_path or DEFAULT_OUTPUT),
        device=values["device"],
        announce=announce,
        refresh_parent=values["refresh_parent"],
        extra_tasks=task_configs(),
        speed=values["speed"],
        skip_finished=values["grid"] is not None,
    )


def _bench_here(recipes: list[Recipe], values: dict[str, Any]) -> int:
    from lowbit.cli.progress import progress
    from lowbit.distillation.processes import is_main_process, part_from_others
    from lowbit.pipeline.bench import bench

    with progress(values["verbosity"], [recipe for recipe in recipes if recipe.quantizer is not None]) as announce:
        rows = list(bench(recipes, _options(recipes, values, announce)))
    part_from_others()
    return _show(rows, values["markdown"]) if is_main_process() else 0


def _bench_on_ray(recipes: list[Recipe], values: dict[str, Any]) -> int:
    from lowbit.cli.grid_view import grid_progress
    from lowbit.distillation.processes import several_processes
    from lowbit.engines.ray_cluster import ClusterSettings
    from lowbit.engines.ray_engine import RayOptions, ray_bench

    if several_processes():
        raise click.UsageError("--engine ray starts its workers itself; do not start it by accelerate or torchrun")
    with grid_progress(values["verbosity"]) as (watcher, announce):
        how = RayOptions(ClusterSettings(values["ray_address"]), values["plugins"], watcher)
        rows = list(ray_bench(recipes, _options(recipes, values, announce), how))
    return _show(rows, values["markdown"])


def _show(rows: list[Any], markdown: bool) -> int:
    from lowbit.cli.console import output
    from lowbit.results.table import render, to_markdown

    if markdown:
        click.echo(to_markdown(rows), nl=False)
    else:
        output().print(render(rows))
    failed = [row for row in rows if row.error is not None]
    for row in failed:
        click.echo(printable(f"lowbit: error: {row.method} on {row.model}: {row.error}"), err=True)
    return 1 if failed else 0
