"""Grids that the tests of engines run, and what must be equal in their results whatever ran them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.embedded import task_configs
from lowbit.pipeline.bench_options import BenchOptions
from lowbit.pipeline.grid_file import read_grid
from lowbit.recipe import Recipe

EVALUATION = {"tasks": ["smallworld_text", "smallworld_choice"], "limit": 8, "bootstrap_iters": 10, "log_samples": True}
OF_TIME_AND_PLACE = {
    *("date", "start_time", "end_time", "total_evaluation_time_seconds", "cost", "run", "from_cache"),
    *("model_name", "model_name_sanitized", "pretrained", "checkpoint", "pretty_env_info"),
}


def grid(folder: Path, methods: Sequence[Any], seeds: Sequence[int], models: Sequence[Path | None] = (None,)) -> Path:
    """Write a grid file; the model `None` is the embedded one."""
    named = [str(model) for model in models if model is not None]
    content = {"methods": list(methods), "seeds": list(seeds), "recipe": {"eval": EVALUATION}, "models": named}
    path = folder / "grid.yaml"
    path.write_text(json.dumps(content))
    return path


def recipes_of(path: Path) -> list[Recipe]:
    return read_grid(path, {})


def options_for(output: Path, **changes: Any) -> BenchOptions:
    return BenchOptions(output, extra_tasks=task_configs(), **changes)


def results(output: Path) -> dict[tuple[str, str, int | None], list[dict[str, Any]]]:
    """Return every result by model, method and seed, without what depends on time and place."""
    found: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {}
    for file in sorted(output.glob("*/results_*.json")):
        result = json.loads(file.read_text())
        ours = result["lowbit"]
        is_parent = ours["role"] == "parent"
        key = (ours["parent"]["name"], "parent" if is_parent else ours["method"], None if is_parent else ours["seed"])
        found.setdefault(key, []).append(_without(result))
    return found


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item) for key, item in value.items() if key not in OF_TIME_AND_PLACE}
    return [_without(item) for item in value] if isinstance(value, list) else value


def files(output: Path) -> dict[str, bytes]:
    """Return every file of the checkpoints and every line of logged samples."""
    found = {
        str(file.relative_to(output)): file.read_bytes()
        for file in sorted((output / "checkpoints").rglob("*"))
        if file.is_file() and not file.name.endswith((".cost.json", ".lock"))
    }
    for folder in {file.parent for file in output.glob("*/samples_*.jsonl")}:
        lines = sorted(line for file in folder.glob("samples_*.jsonl") for line in file.read_text().splitlines())
        found[folder.name] = "\n".join(lines).encode()
    return found
