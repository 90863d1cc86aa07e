"""The cells of a bench, each ending in one file: a parent's evaluation; a method's quantization and evaluation."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.evaluation.chance import chance_levels
from lowbit.evaluation.corpora import model_positions
from lowbit.evaluation.parent_cache import ParentCache, cache_key, document_hashes
from lowbit.evaluation.prepare import PreparedTasks
from lowbit.modeling.parent_bits import parent_bits
from lowbit.models.checkpoint import model_hash
from lowbit.pipeline.backends import dense_with_difference, probe_tokens
from lowbit.pipeline.bench_options import EVALUATION_PACKAGES, PARENTS, BenchOptions, model_name
from lowbit.pipeline.bench_plan import MethodCell
from lowbit.pipeline.domains import in_domain_tasks
from lowbit.pipeline.identity import package_versions, plugin_versions
from lowbit.pipeline.load import load, load_tokenizer, resolve_dtype
from lowbit.pipeline.observed_evaluation import observed_evaluation
from lowbit.pipeline.prepare import model_folder
from lowbit.pipeline.quantize import QuantizationOutcome, failure_reported, quantize_to
from lowbit.pipeline.speed import PROMPT, decoding_speeds
from lowbit.pipeline.taking_part import call_others
from lowbit.recipe import Recipe
from lowbit.recipe.model import Backend
from lowbit.registry import registry
from lowbit.results.metrics import recovery_table
from lowbit.results.record import write_result
from lowbit.results.store import StoredResult, read_result


@dataclass(frozen=True)
class EvaluatedParent:
    """An evaluated parent.

    Args:
        name: What tables call it.
        folder: Where it lies.
        sha256: Identity of its files.
        key: Identity of its evaluation.
        results: lm-eval's result.
        chance: Accuracy of blind choice by task.
        data: Hash of the evaluated documents by task.
        from_cache: Whether it was evaluated before.
    """

    name: str
    folder: Path
    sha256: str
    key: str
    results: Mapping[str, Any]
    chance: Mapping[str, float]
    data: Mapping[str, str]
    from_cache: bool


def evaluation_key(recipe: Recipe, tasks: PreparedTasks, device: str) -> str:
    """Return what identifies a parent's evaluation: its files, tasks with their documents, settings and packages."""
    path = model_folder(recipe)
    dtype = resolve_dtype(path, recipe.model.dtype, device)
    return cache_key(model_hash(path), tasks, recipe.eval, f"{dtype} on {device}")


def evaluate_parent(recipe: Recipe, tasks: PreparedTasks, options: BenchOptions) -> EvaluatedParent:
    """Evaluate a recipe's parent, or take its result from the cache.

    Raises:
        LowbitError: The model cannot be loaded or evaluated.
    """
    path, name = model_folder(recipe), model_name(recipe)
    sha256 = model_hash(path)
    dtype = resolve_dtype(path, recipe.model.dtype, options.device)
    key = evaluation_key(recipe, tasks, options.device)
    cache = ParentCache(options.folder / PARENTS)
    with cache.alone(key, name), threads_of(recipe):
        results = None if options.refresh_parent else cache.load(key)
        cached = results is not None
        if results is None:
            options.announce(f"evaluating the parent {name} (dtype {dtype})")
            model = load(path, "dense", recipe.model.dtype, options.device, recipe.model.trust_remote_code)
            tokenizer = load_tokenizer(path, recipe.model.trust_remote_code)
            results = observed_evaluation(
                recipe, "parent", model, tokenizer, tasks, model_name=str(path), model_sha=sha256
            )
            del model
            cache.save(key, results)
    chance, data = chance_levels(tasks, recipe.eval), document_hashes(tasks, recipe.eval)
    return EvaluatedParent(name, path, sha256, key, results, chance, data, cached)


def write_parent(recipe: Recipe, parent: EvaluatedParent, options: BenchOptions) -> StoredResult:
    """Write a parent's result file."""
    with threads_of(recipe):
        common = _common_record(recipe, parent, options)
    record = {
        "role": "parent",
        **common,
        "bits": parent_bits(parent.folder).model_dump(),
        "from_cache": parent.from_cache,
    }
    return _written(write_result(options.output_path, parent.name, parent.results, record, datetime.now(UTC)))


def run_method(cell: MethodCell, parent: EvaluatedParent, tasks: PreparedTasks, options: BenchOptions) -> StoredResult:
    """Quantize, reload, evaluate and record one method.

    Raises:
        NotQuantizedError: The quantization failed.
        LowbitError: What came after it failed.
    """
    recipe = cell.recipe
    with threads_of(recipe):
        options.announce(f"{recipe.method}: quantizing {parent.name}")
        call_others(recipe, cell.checkpoint)
        try:
            outcome = quantize_to(recipe, cell.checkpoint, options.events(recipe), options.device, cell.ready)
        except LowbitError as error:
            raise NotQuantizedError(str(error)) from error
        options.announce(f"{recipe.method}: evaluating {parent.name}")
        with failure_reported(recipe):
            results, record = _evaluate_checkpoint(recipe, outcome, parent, tasks, options)
            name = f"{parent.name}__{recipe.method}"
            written = _written(write_result(options.output_path, name, results, record, datetime.now(UTC)))
        registry().notify("lowbit_run_finished", result=record)
    return written


class NotQuantizedError(LowbitError):
    """A cell's quantization failed; the other processes of the run, if there are any, stopped midway, too."""


@contextmanager
def threads_of(recipe: Recipe) -> Iterator[None]:
    """Use as many threads as a recipe's `resources.num_cpus` says; torch's own number where it says nothing."""
    if recipe.resources.num_cpus is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.resources.num_cpus)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _written(path: Path) -> StoredResult:
    result = read_result(path)
    assert result is not None, "what was written is a result"
    return result


def _evaluate_checkpoint(
    recipe: Recipe, outcome: QuantizationOutcome, parent: EvaluatedParent, tasks: PreparedTasks, options: BenchOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load the written checkpoint back, measure packed against dense, and evaluate the form that the recipe names."""
    packed = load(outcome.checkpoint, "packed", recipe.model.dtype, options.device)
    vocabulary, positions = packed.config.vocab_size, model_positions(packed.config) or 2048
    tokens = probe_tokens(vocabulary, positions, recipe.seed)
    model, difference, kernels = dense_with_difference(packed, tokens)
    if recipe.backend == "packed":
        del model, packed
        gc.collect()
        model = load(outcome.checkpoint, "packed", recipe.model.dtype, options.device)
    speed = _speeds(recipe, outcome.checkpoint, model, tokens, options) if options.speed else None
    tokenizer = load_tokenizer(outcome.checkpoint, recipe.model.trust_remote_code)
    sha256 = model_hash(outcome.checkpoint)
    results = observed_evaluation(
        recipe,
        "quantized",
        model,
        tokenizer,
        tasks,
        model_name=str(outcome.checkpoint),
        num_parameters=outcome.bits.parameters,
        model_sha=sha256,
    )
    record = {
        "role": "quantized",
        **_common_record(recipe, parent, options),
        "checkpoint": str(outcome.checkpoint),
        "checkpoint_sha256": sha256,
        "bits": outcome.bits.model_dump(),
        "coverage": outcome.coverage,
        "calibration": outcome.calibration,
        "training": outcome.training,
        "in_domain_tasks": in_domain_tasks(outcome.calibration, tasks),
        "cost": outcome.cost,
        "backend": recipe.backend,
        "kernels": kernels,
        "packed_against_dense": difference.to_dict(),
        **({} if speed is None else {"speed": speed}),
        "recovery": recovery_table(parent.results, results, parent.chance),
        "layers": outcome.layers,
    }
    return results, record


def _speeds(recipe: Recipe, checkpoint: Path, model: Any, tokens: Tensor, options: BenchOptions) -> dict[str, Any]:
    """Time packed and dense decoding; `model` is the form that the recipe evaluates, the other one is loaded."""
    options.announce(f"{recipe.method}: timing greedy decoding, packed and dense")
    other: Backend = "dense" if recipe.backend == "packed" else "packed"
    models: dict[str, Any] = {recipe.backend: model, other: load(checkpoint, other, recipe.model.dtype, options.device)}
    timed = decoding_speeds(models, tokens[:1, :PROMPT])
    return {name: timed[name].to_dict() for name in ("packed", "dense")}


def _common_record(recipe: Recipe, parent: EvaluatedParent, options: BenchOptions) -> dict[str, Any]:
    return {
        "run": options.run,
        "method": recipe.method if recipe.quantizer is not None else "none",
        "recipe": recipe.to_dict(),
        "recipe_sha256": recipe.sha256(),
        "seed": recipe.seed,
        "parent": {"name": parent.name, "path": str(parent.folder), "sha256": parent.sha256},
        "chance": parent.chance,
        "data_sha256": parent.data,
        "evaluation_key": parent.key,
        "context_length": parent.results.get("max_length"),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "versions": package_versions(EVALUATION_PACKAGES),
        "plugins": plugin_versions(registry().plugins),
    }
