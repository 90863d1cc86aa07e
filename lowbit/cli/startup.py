"""What every command does first: quiet libraries, plugins, files."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from lowbit.distillation.processes import is_main_process
from lowbit.recipe import Override, parse_override, read_recipe_file
from lowbit.registry import Registry, registry


def start(plugins: Iterable[str]) -> Registry:
    """Load plugins and keep libraries from writing over the command's own output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lm_eval", "transformers", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = registry()
    for broken in found.broken if is_main_process() else ():
        click.echo(f"lowbit: warning: plugin {broken.source} is not used: {broken.reason}", err=True)
    for plugin in plugins:
        found.load(plugin)
    return found


def read_config(path: str | None) -> dict[str, Any] | None:
    """Read the recipe file of `--config`, if one is given."""
    return None if path is None else read_recipe_file(Path(path))


def read_overrides(texts: Iterable[str]) -> list[Override]:
    """Parse every `--set`."""
    return [parse_override(text) for text in texts]
