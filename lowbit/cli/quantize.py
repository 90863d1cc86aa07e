"""`lowbit quantize`: a checkpoint without an evaluation."""

from __future__ import annotations

from typing import Any

import click

from lowbit.cli.options import ManyValues, plugin_options, recipe_flags, recipe_options, verbosity_options


@click.command("quantize", cls=ManyValues)
@click.option(
    "--model", "-M", "models", multiple=True, help="Folder or hub id of the parent; none: the embedded model."
)
@click.option("--method", "methods", multiple=True, help="One method.")
@click.option("--output", "--output_path", "-o", "output", required=True, help="Folder of the checkpoint.")
@click.option("--dry_run", is_flag=True, help="Forecast memory, disk, time and coverage; read no weight.")
@click.option("--show_config", is_flag=True, help="Print the resolved recipe and stop.")
@recipe_options
@plugin_options
@verbosity_options
def command(**values: Any) -> int:
    """Quantize a model into a checkpoint folder that transformers loads after `import lowbit`.

    A killed or interrupted run continues when the same command is given again. While another run makes the same
    folder, this one is refused.
    """
    from pathlib import Path

    from lowbit.cli.describe import print_bits
    from lowbit.cli.grid import grid_recipes, only_described
    from lowbit.cli.progress import progress
    from lowbit.cli.startup import start
    from lowbit.distillation.processes import is_main_process, part_from_others
    from lowbit.errors import LowbitError
    from lowbit.pipeline.quantize import HookEvents, quantize_to

    start(values["plugins"])
    recipes = grid_recipes(values, recipe_flags(values), default_tasks=False)
    if len(recipes) != 1:
        names = ", ".join(recipe.method for recipe in recipes)
        raise LowbitError(
            f"quantize makes one checkpoint; got {len(recipes)} ({names}): give one --method and one --model"
        )
    if only_described(recipes, values):
        return 0
    with progress(values["verbosity"], recipes):
        recipe, output = recipes[0], Path(values["output"])
        outcome = quantize_to(recipe, output, HookEvents(recipe), values["device"], wait=False)
    part_from_others()
    if not is_main_process():
        return 0
    click.echo(f"{outcome.checkpoint}: {100 * outcome.coverage['share']:.2f} % of the decoder's weights quantized")
    for layer in outcome.layers:
        if layer["calibration_tokens"] == 0:
            click.echo(f"no calibration token reached {layer['name']}; it was quantized without data")
        for note in layer["notes"]:
            click.echo(f"{layer['name']}: {note}")
    print_bits(outcome.bits)
    if outcome.cost:
        click.echo(f"{outcome.cost['seconds']:.1f} s, peak memory {outcome.cost['peak_memory_bytes'] / 1e6:.0f} MB")
    return 0
