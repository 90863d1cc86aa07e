"""The whole run: parent and every method through the same evaluation, one result file each, one table."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from lowbit.contracts import RunEvents
from lowbit.distillation.processes import is_main_process, make_accelerator, several_processes
from lowbit.durable import make_directory
from lowbit.errors import LowbitError
from lowbit.evaluation.chance import chance_levels
from lowbit.evaluation.corpora import model_positions
from lowbit.evaluation.fit import check_documents_fit, check_perplexity_windows
from lowbit.evaluation.parent_cache import ParentCache, cache_key, document_hashes
from lowbit.evaluation.prepare import PreparedTasks, prepare_tasks
from lowbit.modeling.parent_bits import parent_bits
from lowbit.models.checkpoint import model_hash
from lowbit.models.streamed import read_config
from lowbit.pipeline.backends import dense_with_difference, probe_tokens
from lowbit.pipeline.composition_check import require_composition
from lowbit.pipeline.domains import in_domain_tasks
from lowbit.pipeline.identity import package_versions, plugin_versions
from lowbit.pipeline.load import load, load_tokenizer, resolve_dtype
from lowbit.pipeline.observed_evaluation import observed_evaluation
from lowbit.pipeline.prepare import Preparation, model_folder, prepare
from lowbit.pipeline.quantize import (
    HookEvents,
    QuantizationOutcome,
    failure_reported,
    quantize_to,
    require_writable,
)
from lowbit.pipeline.resources import require_device
from lowbit.pipeline.speed import PROMPT, decoding_speeds
from lowbit.pipeline.taking_part import call_others, let_others_go, take_part
from lowbit.recipe import Recipe, canonical_sha256
from lowbit.recipe.model import Backend
from lowbit.registry import registry
from lowbit.results.metrics import Metric, primary_metrics, read_metrics, recovery_table
from lowbit.results.record import sanitize, write_result
from lowbit.results.table import Row

CHECKPOINTS = "checkpoints"
PARENTS = "parents"
EVALUATION_PACKAGES = ("lowbit", "torch", "transformers", "lm_eval", "datasets", "safetensors", "tokenizers")


@dataclass(frozen=True)
class BenchOptions:
    """How a bench runs, beside what the recipes say.

    Args:
        output_path: Where results, checkpoints and cached parents go.
        device: Where models are worked on and evaluated.
        events: Makes the observers of one quantization.
        announce: Is told what happens next.
        refresh_parent: Evaluate parents again although their results are cached.
        extra_tasks: Task configurations beside lm-eval's own.
        speed: Time greedy decoding of each packed model beside its dense form.
    """

    output_path: Path
    device: str = "cpu"
    events: Callable[[Recipe], RunEvents] = HookEvents
    announce: Callable[[str], None] = lambda text: None
    refresh_parent: bool = False
    extra_tasks: Sequence[dict[str, Any]] = ()
    speed: bool = False


@dataclass(frozen=True)
class _Parent:
    """An evaluated parent.

    Args:
        name: What tables call it.
        folder: Where it lies.
        sha256: Identity of its files.
        results: lm-eval's result.
        chance: Accuracy of blind choice by task.
        data: Hash of the evaluated documents by task.
    """

    name: str
    folder: Path
    sha256: str
    results: dict[str, Any]
    chance: dict[str, float]
    data: dict[str, str]

    @property
    def metrics(self) -> dict[str, Metric]:
        """The primary metric of each task."""
        return primary_metrics(self.results)


def bench(recipes: Sequence[Recipe], options: BenchOptions) -> Iterator[Row]:
    """Evaluate every recipe's parent once and every recipe's quantized model, yielding rows as they are done.

    Everything that can be known to fail is checked before the first weight is read. A method that fails does not stop
    the others; its row carries the error. Of several processes the main one does all this; the others only take part in
    quantizations and yield nothing, and a quantization that fails ends them all.

    Args:
        recipes: Any number of methods and models; those of one model should stand together.
        options: How to run.

    Raises:
        LowbitError: A model, a task, a data set or a recipe does not hold up.
    """
    for recipe in recipes:
        require_composition(recipe, registry())
    results_folder = options.output_path.parent if options.output_path.suffix == ".json" else options.output_path
    make_directory(results_folder)
    require_device(options.device)
    if several_processes():
        make_accelerator(options.device)
    if not is_main_process():
        take_part(recipes, options.device)
        return
    prepared: dict[str, PreparedTasks] = {}
    ready: dict[int, Preparation] = {}
    for number, recipe in enumerate(recipes):
        key = recipe.eval.model_dump_json()
        if key not in prepared:
            options.announce(f"loading tasks {', '.join(recipe.eval.tasks)}")
            prepared[key] = prepare_tasks(recipe.eval, options.extra_tasks)
        _check_fit(recipe, prepared[key])
        if recipe.quantizer is not None:
            ready[number] = prepare(recipe, options.device)
            require_writable(_checkpoint_path(results_folder, recipe, ready[number]))
    parents: dict[str, _Parent | None] = {}
    for number, recipe in enumerate(recipes):
        tasks = prepared[recipe.eval.model_dump_json()]
        parent_key = recipe.model.model_dump_json() + recipe.eval.model_dump_json()
        if parent_key not in parents:
            row, parents[parent_key] = _run_parent(recipe, tasks, options, results_folder)
            yield row
        parent = parents[parent_key]
        if number in ready and parent is not None:
            yield _run_method(recipe, ready[number], parent, tasks, options, results_folder)
    let_others_go()


def _check_fit(recipe: Recipe, tasks: PreparedTasks) -> None:
    folder = model_folder(recipe)
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    config = read_config(folder, recipe.model.trust_remote_code)
    length = recipe.eval.max_length or model_positions(config) or 2048
    check_documents_fit(tasks, tokenizer, length, recipe.eval)
    check_perplexity_windows(tasks, tokenizer, config, recipe.eval)


def _checkpoint_path(folder: Path, recipe: Recipe, ready: Preparation) -> Path:
    name = f"{sanitize(_model_name(recipe))}__{recipe.method}-{canonical_sha256(ready.signature)[:12]}"
    return folder / CHECKPOINTS / name


def _model_name(recipe: Recipe) -> str:
    if recipe.model.path is None:
        return "embedded"
    path = Path(recipe.model.path)
    return path.resolve().name if path.is_dir() else path.name


def _evaluate_parent(recipe: Recipe, tasks: PreparedTasks, options: BenchOptions, folder: Path) -> _Parent:
    """Evaluate a parent, or take its result from the cache, and write its result file."""
    path = model_folder(recipe)
    sha256 = model_hash(path)
    cache = ParentCache(folder / PARENTS)
    dtype = resolve_dtype(path, recipe.model.dtype, options.device)
    key = cache_key(sha256, tasks, recipe.eval, f"{dtype} on {options.device}")
    name = _model_name(recipe)
    with cache.alone(key, name):
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
    parent = _Parent(
        name, path, sha256, results, chance_levels(tasks, recipe.eval), document_hashes(tasks, recipe.eval)
    )
    record = {
        "role": "parent",
        **_common_record(recipe, parent, options),
        "bits": parent_bits(path).model_dump(),
        "from_cache": cached,
    }
    write_result(options.output_path, name, results, record, datetime.now(UTC))
    return parent


def _run_parent(
    recipe: Recipe, tasks: PreparedTasks, options: BenchOptions, folder: Path
) -> tuple[Row, _Parent | None]:
    """Evaluate a parent; an error becomes its row, and its methods are left out."""
    try:
        parent = _evaluate_parent(recipe, tasks, options, folder)
    except LowbitError as error:
        return Row(_model_name(recipe), "parent", error=str(error), recipe_sha256=recipe.sha256()), None
    bits = parent_bits(parent.folder)
    row = Row(
        model=parent.name,
        method="parent",
        bits=(bits.nominal_bits, bits.quantized_bits, bits.whole_file_bits),
        metrics=parent.metrics,
        chance=parent.chance,
        recipe_sha256=recipe.sha256(),
        measured=tuple(read_metrics(parent.results)),
    )
    return row, parent


def _run_method(
    recipe: Recipe, ready: Preparation, parent: _Parent, tasks: PreparedTasks, options: BenchOptions, folder: Path
) -> Row:
    """Quantize, reload, evaluate and record one method; an error becomes a row."""
    outcome: QuantizationOutcome | None = None
    try:
        output = _checkpoint_path(folder, recipe, ready)
        options.announce(f"{recipe.method}: quantizing {parent.name}")
        call_others(recipe, output)
        outcome = quantize_to(recipe, output, options.events(recipe), options.device, ready)
        options.announce(f"{recipe.method}: evaluating {parent.name}")
        with failure_reported(recipe):
            results, record = _evaluate_checkpoint(recipe, outcome, parent, tasks, options)
            write_result(options.output_path, f"{parent.name}__{recipe.method}", results, record, datetime.now(UTC))
        registry().notify("lowbit_run_finished", result=record)
    except LowbitError as error:
        if outcome is None and several_processes():
            raise  # The other processes stopped midway, too, and wait for nothing that could still come.
        return Row(
            model=parent.name,
            method=recipe.method,
            error=str(error),
            recipe_sha256=recipe.sha256(),
            parent_measured=tuple(read_metrics(parent.results)),
        )
    bits = outcome.bits
    return Row(
        model=parent.name,
        method=recipe.method,
        bits=(bits.nominal_bits, bits.quantized_bits, bits.whole_file_bits),
        metrics=primary_metrics(results),
        parent=parent.metrics,
        chance=parent.chance,
        seconds=outcome.cost.get("seconds"),
        memory_bytes=outcome.cost.get("peak_memory_bytes"),
        recipe_sha256=recipe.sha256(),
        measured=tuple(read_metrics(results)),
        parent_measured=tuple(read_metrics(parent.results)),
        decoding=tuple(rates["tokens_per_second"] for rates in record.get("speed", {}).values()),
    )


def _evaluate_checkpoint(
    recipe: Recipe, outcome: QuantizationOutcome, parent: _Parent, tasks: PreparedTasks, options: BenchOptions
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


def _common_record(recipe: Recipe, parent: _Parent, options: BenchOptions) -> dict[str, Any]:
    return {
        "method": recipe.method if recipe.quantizer is not None else "none",
        "recipe": recipe.to_dict(),
        "recipe_sha256": recipe.sha256(),
        "seed": recipe.seed,
        "parent": {"name": parent.name, "path": str(parent.folder), "sha256": parent.sha256},
        "chance": parent.chance,
        "data_sha256": parent.data,
        "context_length": parent.results.get("max_length"),
        "device": options.device,
        "versions": package_versions(EVALUATION_PACKAGES),
        "plugins": plugin_versions(registry().plugins),
    }
