"""The Python API: `lowbit.quantize`, `lowbit.load` and `lowbit.bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.embedded import DEFAULT_TASKS, task_configs
from lowbit.errors import LowbitError
from lowbit.pipeline.bench import BenchOptions
from lowbit.pipeline.bench import bench as run_bench
from lowbit.pipeline.load import load
from lowbit.pipeline.quantize import HookEvents, QuantizationOutcome, quantize_to
from lowbit.recipe import Override, Recipe, resolve_recipe
from lowbit.registry import registry
from lowbit.results.table import Row

__all__ = ["bench", "load", "quantize"]


def quantize(model: str, method: str, output: str | Path, device: str = "cpu", **recipe: Any) -> QuantizationOutcome:
    """Quantize a model into a checkpoint folder; a killed call continues when it is repeated.

    Args:
        model: Folder or hub id of the parent.
        method: Name of a registered method.
        output: The checkpoint's folder.
        device: Where to work.
        **recipe: Further recipe keys, such as `quantizer={"group_size": 128}` or `seed=1`.

    Raises:
        LowbitError: Something in the arguments, the model or the data does not hold up.
    """
    resolved = resolve_recipe(registry(), method, flags={"model": {"path": model}, **recipe})
    return quantize_to(resolved, Path(output), HookEvents(resolved), device)


def bench(
    model: str | Sequence[str] | None = None,
    method: str | Sequence[str] | None = None,
    tasks: str | Sequence[str] = DEFAULT_TASKS,
    output_path: str | Path = "lowbit_results",
    device: str = "cpu",
    overrides: Sequence[Override] = (),
    **recipe: Any,
) -> list[Row]:
    """Quantize, reload and evaluate models beside their parents.

    Args:
        model: Folders or hub ids; `None` is the embedded model.
        method: Names of methods; `None` runs those that plugins mark as default.
        tasks: lm-eval's task names, and the papers' token perplexities.
        output_path: Where results and checkpoints go.
        device: Where to work.
        overrides: Recipe overrides, for all methods or for one.
        **recipe: Further recipe keys; `eval` has lm-eval's names.

    Returns:
        One row a parent and a method, ready for `lowbit.results.table`.
    """
    evaluation = {**recipe.pop("eval", {}), "tasks": tasks}
    recipes = resolve_grid(model, method, {**recipe, "eval": evaluation}, overrides=overrides)
    options = BenchOptions(Path(output_path), device=device, extra_tasks=task_configs())
    return list(run_bench(recipes, options))


def resolve_grid(
    models: str | Sequence[str] | None,
    methods: str | Sequence[str] | None,
    flags: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    overrides: Sequence[Override] = (),
) -> list[Recipe]:
    """Return one recipe for every model and method.

    Args:
        models: Folders or hub ids; `None` leaves it to the recipe file, else the embedded model.
        methods: Names of methods; `None` leaves it to the recipe file, else those marked as default.
        flags: Recipe keys that hold for all.
        file: Content of a recipe file.
        overrides: `--set` overrides.
    """
    names: list[str | None] = list(_as_list(methods))
    if not names and file and ("method" in file or "quantizer" in file):
        names = [None]
    names = names or [method.name for method in registry().methods() if method.default]
    _require_used(overrides, [name or str((file or {}).get("method")) for name in names])
    recipes = []
    for path in [{"path": model} for model in _as_list(models)] or [{}]:
        merged = {**flags, "model": {**flags.get("model", {}), **path}}
        recipes += [resolve_recipe(registry(), name, file, merged, overrides) for name in names]
    return recipes


def _require_used(overrides: Sequence[Override], methods: Sequence[str]) -> None:
    for override in overrides:
        if override.method is not None and override.method not in methods:
            raise LowbitError(
                f"--set {override.method}:{'.'.join(override.path)} is for a method that is not in this run; "
                f"it has {', '.join(methods)}"
            )


def _as_list(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return value.split(",") if isinstance(value, str) else list(value)
