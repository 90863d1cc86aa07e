"""Grid files: methods x models x seeds in YAML, with what they have in common."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lowbit.errors import LowbitError
from lowbit.pipeline.bench_options import model_name
from lowbit.recipe import Override, Recipe, resolve_recipe
from lowbit.recipe.overrides import lay_over
from lowbit.recipe.resolve import read_recipe_file, validate
from lowbit.registry import registry

MOST_CELLS = 100_000


class Excluded(BaseModel):
    """Cells that a grid leaves out: those that have all the values given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="as under `models`")
    method: str | None = Field(None, description="name of the method")
    seed: int | None = Field(None, description="as under `seeds`")


class GridFile(BaseModel):
    """What a grid file holds.

    A method is a name, or a mapping of recipe keys with `method` among them, which are laid over `recipe` for that
    method alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(1, ge=1, le=1)
    models: tuple[str, ...] = Field((), description="folders or hub ids; none: the embedded model")
    methods: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="names, or mappings with `method`")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="one cell a seed")
    recipe: dict[str, Any] = Field(default_factory=dict, description="recipe keys that all cells share")
    exclude: tuple[Excluded, ...] = Field((), description="cells to leave out")


def read_grid(
    path: Path, flags: Mapping[str, Any], overrides: Sequence[Override] = (), tasks: Sequence[str] = ()
) -> list[Recipe]:
    """Read a grid file into one recipe a cell: models first, then methods, then seeds.

    Args:
        path: The YAML file.
        flags: Recipe keys that command-line options set; they win over the file.
        overrides: `--set` overrides; they win over both.
        tasks: What to judge by where neither the file nor a flag names tasks.

    Raises:
        LowbitError: The file is no grid, a recipe in it does not hold up, or a cell is there twice.
    """
    grid: GridFile = validate(GridFile, read_recipe_file(path), f"grid {path}")
    _require_own_places(grid, path)
    cells = max(len(grid.models), 1) * len(grid.methods) * len(grid.seeds)
    if cells > MOST_CELLS:
        raise LowbitError(f"grid {path} has {cells} cells; at most {MOST_CELLS} are run at once: divide it")
    recipes: dict[str, Recipe] = {}
    defaults = {"eval": {"tasks": list(tasks)}} if tasks else {}
    excluded = _Exclusions(grid.exclude)
    for recipe in _recipes(grid, path, excluded, defaults, flags, overrides):
        if recipe.sha256() in recipes:
            raise LowbitError(
                f"grid {path} has method {recipe.method} on {model_name(recipe)} with seed {recipe.seed} twice; "
                "a cell that shall run again needs another seed"
            )
        recipes[recipe.sha256()] = recipe
    for rule in grid.exclude:
        if not excluded.has_used(rule):
            raise LowbitError(f"grid {path}: exclude {rule.model_dump(exclude_none=True)} leaves out no cell; mend it")
    if not recipes:
        raise LowbitError(f"grid {path} excludes all of its {cells} cells")
    return list(recipes.values())


class _Exclusions:
    """The cells that a grid leaves out; looking one up takes as long for one rule as for thousands."""

    def __init__(self, rules: Sequence[Excluded]) -> None:
        self._wanted = {_key(rule) for rule in rules} - {(None, None, None)}
        self._used: set[tuple[object, ...]] = set()

    def leave_out(self, model: str | None, method: str, seed: int) -> bool:
        """Say whether a rule leaves a cell out, and note every rule that does."""
        found = set(itertools.product((model, None), (method, None), (seed, None))) & self._wanted
        self._used |= found
        return bool(found)

    def has_used(self, rule: Excluded) -> bool:
        """Say whether a rule left out any cell yet."""
        return _key(rule) in self._used


def _key(rule: Excluded) -> tuple[object, ...]:
    return (rule.model, rule.method, rule.seed)


def _recipes(
    grid: GridFile,
    path: Path,
    excluded: _Exclusions,
    defaults: Mapping[str, Any],
    flags: Mapping[str, Any],
    overrides: Sequence[Override],
) -> Iterator[Recipe]:
    entries = [_entry(method, path) for method in grid.methods]
    for model in grid.models or (None,):
        for name, keys in entries:
            for seed in grid.seeds:
                if excluded.leave_out(model, name, seed):
                    continue
                place = {"seed": seed} if model is None else {"seed": seed, "model": {"path": model}}
                file = lay_over(lay_over(defaults, grid.recipe), keys)
                yield resolve_recipe(registry(), name, file, lay_over(flags, place), overrides)


def _require_own_places(grid: GridFile, path: Path) -> None:
    """Refuse keys that the grid's own lists would silently win over, and a model that is there in two spellings."""
    for key, place in (("seed", "seeds"), ("method", "methods")):
        if key in grid.recipe:
            raise LowbitError(f"grid {path}: `recipe` sets {key!r}; name it under `{place}`")
    model = grid.recipe.get("model")
    if grid.models and isinstance(model, Mapping) and "path" in model:
        raise LowbitError(f"grid {path}: `recipe` sets model.path beside `models`; name it there")
    spelled = {os.path.normpath(model): model for model in grid.models}
    if len(spelled) < len(grid.models):
        raise LowbitError(f"grid {path}: `models` has one model twice; it has {', '.join(grid.models)}")


def _entry(method: str | Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """Return a method's name and the recipe keys that it has of its own."""
    keys = {"method": method} if isinstance(method, str) else dict(method)
    name = keys.pop("method", None)
    if not isinstance(name, str):
        raise LowbitError(f"grid {path}: an entry of `methods` is a name, or a mapping with `method`; not {method}")
    for key in ("seed", "model"):
        if key in keys:
            raise LowbitError(f"grid {path}: method {name} sets {key!r}; name it under `{key}s`")
    return name, keys
