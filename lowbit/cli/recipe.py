"""`lowbit recipe`: show, check and describe recipes."""

from __future__ import annotations

import json
from typing import Any

import click

from lowbit.cli.options import plugin_options


@click.group("recipe")
def command() -> None:
    """Show, check and describe recipes: the whole of a run in one YAML file."""


@command.command("show")
@click.argument("method")
@click.option("--preset", help="One of the method's presets.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
@plugin_options
def show(method: str, preset: str | None, overrides: tuple[str, ...], plugins: tuple[str, ...]) -> None:
    """Print the resolved recipe of a method, every default filled in."""
    import yaml

    from lowbit.cli.startup import read_overrides, start
    from lowbit.recipe import resolve_recipe

    flags = {} if preset is None else {"preset": preset}
    recipe = resolve_recipe(start(plugins), method, flags=flags, overrides=read_overrides(overrides))
    click.echo(yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True), nl=False)
    click.echo(f"# sha256 {recipe.sha256()}")


@command.command("check")
@click.argument("file", type=click.Path(dir_okay=False))
@plugin_options
def check(file: str, plugins: tuple[str, ...]) -> None:
    """Validate a recipe file and print its id."""
    from pathlib import Path

    from lowbit.cli.startup import start
    from lowbit.pipeline.composition_check import require_composition
    from lowbit.recipe import read_recipe_file, resolve_recipe

    found = start(plugins)
    recipe = resolve_recipe(found, None, read_recipe_file(Path(file)))
    require_composition(recipe, found)
    click.echo(f"{file} is a valid recipe for {recipe.method}, sha256 {recipe.sha256()}")


@command.command("schema")
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from lowbit.recipe import Recipe

    content: dict[str, Any] = Recipe.model_json_schema()
    click.echo(json.dumps(content, indent=2))
