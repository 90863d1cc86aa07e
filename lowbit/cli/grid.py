"""From command-line values to recipes, for one or several models and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from lowbit.cli.forecast_table import print_forecasts
from lowbit.cli.startup import read_config, read_overrides
from lowbit.distillation.processes import is_main_process
from lowbit.embedded import DEFAULT_TASKS
from lowbit.pipeline.api import resolve_grid
from lowbit.pipeline.grid_file import read_grid
from lowbit.recipe import Recipe


def grid_recipes(values: Mapping[str, Any], flags: dict[str, Any], default_tasks: bool = True) -> list[Recipe]:
    """Resolve the recipes of every model and method on the command line.

    Args:
        values: The options' values; `models`, `methods`, `config`, `grid` and `overrides` are read.
        flags: Recipe keys that options set.
        default_tasks: Whether to judge by the embedded tasks when none are named.
    """
    if values.get("grid") is not None:
        return _recipes_of_grid(values, flags)
    file = read_config(values.get("config"))
    named = flags.get("eval", {}).get("tasks") or (file or {}).get("eval", {}).get("tasks")
    if default_tasks and not named:
        flags.setdefault("eval", {})["tasks"] = DEFAULT_TASKS
    models = _split(values.get("models", ()))
    return resolve_grid(models, _split(values.get("methods", ())), flags, file, read_overrides(values["overrides"]))


def _recipes_of_grid(values: Mapping[str, Any], flags: dict[str, Any]) -> list[Recipe]:
    """Resolve the recipes of a grid file."""
    for option, key in (("--model", "models"), ("--method", "methods"), ("--config", "config"), ("--seed", "seed")):
        if values.get(key):
            raise click.UsageError(f"--grid lists models, methods, seeds and recipe keys itself; leave out {option}")
    if "path" in flags.get("model", {}):
        raise click.UsageError("--grid lists models itself; leave out pretrained= of --model_args")
    return read_grid(Path(values["grid"]), flags, read_overrides(values["overrides"]), DEFAULT_TASKS)


def only_described(recipes: Sequence[Recipe], values: Mapping[str, Any]) -> bool:
    """Carry out `--show_config` and `--dry_run`, and say whether one of them was asked for.

    Args:
        recipes: The run's recipes.
        values: The options' values; `show_config`, `dry_run` and `device` are read.
    """
    if not is_main_process():
        return bool(values["show_config"] or values["dry_run"])
    if values["show_config"]:
        documents = [recipe.to_dict() for recipe in recipes]
        click.echo(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True), nl=False)
    elif values["dry_run"]:
        print_forecasts(recipes, values["device"])
    return bool(values["show_config"] or values["dry_run"])


def _split(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]
