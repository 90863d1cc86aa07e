"""One cell of the table of all methods: what it is made from, its making, and its file."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from lowbit.contracts import StatisticsNeed
from lowbit.durable import write_json
from lowbit.embedded import model_path, task_configs
from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import DEFAULT_CONTEXT_LENGTH, model_positions
from lowbit.models.checkpoint import model_hash
from lowbit.models.streamed import read_config
from lowbit.pipeline.bench import EVALUATION_PACKAGES, PARENTS, BenchOptions, bench
from lowbit.pipeline.identity import package_versions, plugin_versions, plugins_of
from lowbit.recipe import Recipe, resolve_recipe
from lowbit.registry import registry
from lowbit.results.table import Row

EMBEDDED = "embedded"
PARENT = "none"
GROUP_OPTIONS = ("group_size", "block_size")
CELLS = "cells"


@dataclass(frozen=True)
class Settings:
    """What holds for all cells.

    Args:
        data_dir: Local mirror of hub data sets; `None` asks the hub.
        n_samples: Calibration sequences.
        seq_len: Their tokens, and those of an evaluated window; less where the model has fewer positions.
        limit: Evaluated windows; `None` for all. The embedded model's text is always evaluated whole.
    """

    data_dir: str | None
    n_samples: int
    seq_len: int
    limit: int | None


@dataclass(frozen=True)
class Job:
    """What a cell is made from.

    Args:
        model: Folder of the parent; `None` is the embedded model.
        method: Name of the method; `none` for the parent itself.
        group: Columns of a group, -1 for whole rows; `None` for the parent.
        seed: Decides the calibration windows and every random draw.
    """

    model: str | None
    method: str
    group: int | None
    seed: int

    @property
    def model_name(self) -> str:
        """What the table calls the model."""
        return EMBEDDED if self.model is None else Path(self.model).resolve().name

    @property
    def file_name(self) -> str:
        """The cell's file."""
        return f"{self.model_name}__{self.method}__{self.group}__{self.seed}.json"


@dataclass(frozen=True)
class Cell:
    """What one job gave.

    Args:
        model: Name of the model.
        method: Name of the method.
        group: Columns of a group, -1 for whole rows.
        seed: Of calibration.
        task: The task, of a token perplexity with its context length.
        metric: The task's metric.
        perplexity: Its value; `None` where it is not finite.
        bits: Nominal, linear and file.
        evaluated: Windows or pages.
        seconds: What quantization took.
        difference: Packed against dense logits.
        calibration: Record of the calibration tokens.
        signature: What the cell depends on.
        date: When it was made.
        error: Why there is no result.
    """

    model: str
    method: str
    group: int | None
    seed: int
    signature: dict[str, Any]
    date: str
    task: str = ""
    metric: str = ""
    perplexity: float | None = None
    bits: tuple[float, float, float] | None = None
    evaluated: int | None = None
    seconds: float | None = None
    difference: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    error: str | None = None


def method_names() -> list[str]:
    """Return every method that quantizes, without those that are others under a second name."""
    methods = [method for method in registry().methods() if method.quantizer is not None]
    what = [(method.quantizer, dict(method.options), method.packer) for method in methods]
    return [method.name for number, method in enumerate(methods) if what[number] not in what[:number]]


def plan(
    models: Sequence[str | None], methods: Sequence[str], groups: Sequence[int], seeds: Sequence[int]
) -> Iterator[Job]:
    """Yield every job but the parents', all with the first seed before any with the second."""
    for seed in seeds:
        for model in models:
            for method in methods:
                option, default, calibrated = group_option(method)
                if calibrated or seed == seeds[0]:
                    sizes = [*groups, *({default} - set(groups))] if option else [default]
                    yield from (Job(model, method, size, seed) for size in sizes)


def group_option(method: str) -> tuple[str | None, int | None, bool]:
    """Return a method's option for the group, its value if none is given, and whether calibration plays a part."""
    recipe = resolve_recipe(registry(), method)
    if recipe.quantizer is None:
        raise LowbitError(f"method {method!r} quantizes nothing; the parent is in the table anyway")
    calibrated = registry().quantizer(recipe.quantizer.name).needs is not StatisticsNeed.NONE
    options = recipe.quantizer.options
    option = next((name for name in GROUP_OPTIONS if name in options), None)
    return option, options[option] if option else None, calibrated


def recipe_of(job: Job, settings: Settings) -> Recipe:
    """Return the recipe of a job."""
    folder = model_path() if job.model is None else Path(job.model)
    length = min(settings.seq_len, model_positions(read_config(folder, False)) or DEFAULT_CONTEXT_LENGTH)
    evaluation: dict[str, Any] = {"tasks": "smallworld_text", "bootstrap_iters": 0}
    calibration: dict[str, Any] = {"n_samples": settings.n_samples, "seq_len": length}
    if job.model is not None:
        evaluation |= {"tasks": f"wikitext2_ppl@{length}", "limit": settings.limit, "data_dir": settings.data_dir}
        calibration["source"] = "wikitext2"
    flags: dict[str, Any] = {
        "model": {"path": job.model, "dtype": "float32"},
        "seed": job.seed,
        "calibration": calibration,
        "eval": evaluation,
    }
    if job.method != PARENT:
        option, _, _ = group_option(job.method)
        flags["quantizer"] = {option: job.group} if option else {}
    return resolve_recipe(registry(), job.method, flags=flags)


def signature_of(job: Job, recipe: Recipe) -> dict[str, Any]:
    """Return everything but lowbit's core that a cell depends on, without paths."""
    settings = recipe.to_dict()
    del settings["model"]["path"], settings["eval"]["data_dir"], settings["output_path"]
    return {
        "model_sha256": _model_sha256(model_path() if job.model is None else Path(job.model)),
        "recipe": settings,
        "versions": package_versions(EVALUATION_PACKAGES),
        "plugins": plugin_versions(plugins_of(recipe, registry())),
    }


@cache
def _model_sha256(folder: Path) -> str:
    return model_hash(folder)


def run_job(job: Job, settings: Settings, folder: Path) -> Cell:
    """Make a cell and write it; an error becomes part of it."""
    recipe = recipe_of(job, settings)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    cell = Cell(job.model_name, job.method, job.group, job.seed, signature_of(job, recipe), date)
    try:
        cell = _measured(cell, recipe, folder)
    except Exception as error:
        cell = replace(cell, error=f"{type(error).__name__}: {error}")
    write_json(folder / CELLS / job.file_name, asdict(cell))
    return cell


def _measured(cell: Cell, recipe: Recipe, folder: Path) -> Cell:
    parents = folder / PARENTS
    with tempfile.TemporaryDirectory(prefix="lowbit_table_") as work:
        if parents.is_dir():
            shutil.copytree(parents, Path(work) / PARENTS)
        rows = list(bench([recipe], BenchOptions(Path(work), extra_tasks=task_configs())))
        if cell.method == PARENT:
            shutil.copytree(Path(work) / PARENTS, parents, dirs_exist_ok=True)
        files = (Path(work) / f"{cell.model}{'' if cell.method == PARENT else f'__{cell.method}'}").glob("*.json")
        records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    row = rows[-1]
    if row.error is not None:
        return replace(cell, error=row.error)
    return _filled(cell, row, records[0])


def _filled(cell: Cell, row: Row, record: Mapping[str, Any]) -> Cell:
    [(task, metric)] = row.metrics.items()
    return replace(
        cell,
        task=task,
        metric=metric.name,
        perplexity=metric.value if math.isfinite(metric.value) else None,
        bits=row.bits,
        evaluated=record["n-samples"][task]["effective"],
        seconds=row.seconds,
        difference=record["lowbit"].get("packed_against_dense"),
        calibration=record["lowbit"].get("calibration"),
    )


def read_cell(file: Path) -> Cell:
    """Read a cell back."""
    content = json.loads(file.read_text(encoding="utf-8"))
    bits = content["bits"]
    return Cell(**{**content, "bits": None if bits is None else tuple(bits)})


def finished(job: Job, settings: Settings, folder: Path) -> Cell | None:
    """Return the cell of a job if it is there, without an error, and depends on what it would depend on now."""
    file = folder / CELLS / job.file_name
    cell = read_cell(file) if file.is_file() else None
    if cell is None or cell.error is not None:
        return None
    now = json.loads(json.dumps(signature_of(job, recipe_of(job, settings))))
    return cell if cell.signature == now else None


def start_worker() -> None:
    """Set a worker process up: one thread, and silence, as errors are kept in the cells."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
