"""`lowbit eval`: lm-evaluation-harness on a checkpoint or any other model."""

from __future__ import annotations

from typing import Any

import click

from lowbit.cli.options import ManyValues, evaluation_options, plugin_options, recipe_flags, verbosity_options


@click.command("eval", cls=ManyValues)
@click.argument("path", required=False)
@click.option("--model", "-M", "model", help="The same as PATH: folder or hub id; none: the embedded model.")
@click.option("--backend", type=click.Choice(["dense", "packed"]), help="How a lowbit checkpoint is run.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), help="Of unquantized parts.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--trust_remote_code", is_flag=True, default=None, help="Run code that comes with the model.")
@click.option("--data_dir", envvar="LOWBIT_DATA_DIR", help="Local mirror of hub data sets; no network then.")
@click.option("--seed", help="lm-eval's seeds: python,numpy,torch,fewshot.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs.")
@click.option("--output_path", "-o", help="Folder or .json file of the result.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@evaluation_options
@plugin_options
@verbosity_options
def command(**values: Any) -> int:
    """Evaluate a model with lm-evaluation-harness under its own flags, and the papers' token perplexities."""
    from lowbit.cli.console import output
    from lowbit.cli.progress import progress
    from lowbit.cli.startup import start
    from lowbit.embedded import DEFAULT_TASKS, task_configs
    from lowbit.errors import LowbitError
    from lowbit.pipeline.evaluate import evaluate_model
    from lowbit.recipe import ModelSettings, Recipe
    from lowbit.recipe.resolve import validate
    from lowbit.results.table import render, to_markdown

    start(values["plugins"])
    if values["path"] and values["model"]:
        raise LowbitError("give the model once: as PATH or with --model")
    flags = recipe_flags(values)
    flags.setdefault("eval", {}).setdefault("tasks", DEFAULT_TASKS)
    if values["path"] or values["model"]:
        flags["model"] = {**flags.get("model", {}), "path": values["path"] or values["model"]}
    recipe: Recipe = validate(Recipe, {"method": "none", "model": ModelSettings().model_dump(), **flags}, "evaluation")
    with progress(values["verbosity"]):
        row = evaluate_model(recipe, values["device"], values["output_path"], task_configs())
    if values["markdown"]:
        click.echo(to_markdown([row]), nl=False)
    else:
        output().print(render([row]))
    return 0
