"""Evaluates one model as it is: a lowbit checkpoint or an unquantized model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowbit.documents import parse_yaml
from lowbit.durable import make_directory
from lowbit.evaluation.chance import chance_levels
from lowbit.evaluation.corpora import model_positions
from lowbit.evaluation.fit import check_documents_fit, check_perplexity_windows
from lowbit.evaluation.parent_cache import document_hashes
from lowbit.evaluation.prepare import prepare_tasks
from lowbit.modeling.bits_report import BitsReport
from lowbit.modeling.parent_bits import parent_bits
from lowbit.models.checkpoint import model_hash
from lowbit.models.streamed import read_config
from lowbit.pipeline.identity import package_versions, plugin_versions
from lowbit.pipeline.inspection import Inspection, inspect_checkpoint
from lowbit.pipeline.load import is_quantized, load, load_tokenizer
from lowbit.pipeline.observed_evaluation import observed_evaluation
from lowbit.pipeline.prepare import model_folder
from lowbit.pipeline.resources import require_device
from lowbit.recipe import Recipe
from lowbit.registry import registry
from lowbit.results.metrics import primary_metrics
from lowbit.results.record import write_result
from lowbit.results.table import Row


def evaluate_model(
    recipe: Recipe, device: str = "cpu", output_path: str | None = None, extra_tasks: Sequence[dict[str, Any]] = ()
) -> Row:
    """Evaluate the model that a recipe names, without quantizing it.

    Args:
        recipe: Model, backend and evaluation.
        device: Where the model runs.
        output_path: Folder or `.json` file of the result; `None` writes none.
        extra_tasks: Task configurations beside lm-eval's own.

    Raises:
        LowbitError: The model, a task or a data set does not hold up.
    """
    require_device(device)
    if output_path is not None:
        make_directory(Path(output_path).parent if output_path.endswith(".json") else Path(output_path))
    folder = model_folder(recipe)
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    tasks = prepare_tasks(recipe.eval, extra_tasks)
    config = read_config(folder, recipe.model.trust_remote_code)
    check_documents_fit(tasks, tokenizer, recipe.eval.max_length or model_positions(config) or 2048, recipe.eval)
    check_perplexity_windows(tasks, tokenizer, config, recipe.eval)
    inspection = inspect_checkpoint(folder) if is_quantized(folder) else None
    bits = parent_bits(folder) if inspection is None else inspection.bits
    model = load(folder, recipe.backend, recipe.model.dtype, device, recipe.model.trust_remote_code)
    sha256 = model_hash(folder)
    name = "embedded" if recipe.model.path is None else folder.name
    about_model = {"model_name": str(folder), "num_parameters": bits.parameters, "model_sha": sha256}
    results = observed_evaluation(recipe, "evaluation", model, tokenizer, tasks, **about_model)
    if output_path is not None:
        asked = {
            "chance": chance_levels(tasks, recipe.eval),
            "data_sha256": document_hashes(tasks, recipe.eval),
            "context_length": results.get("max_length"),
        }
        parent = {"name": name, "path": str(folder), "sha256": sha256}
        record = {**_record(recipe, bits, sha256, inspection, parent, device), **asked}
        write_result(Path(output_path), name, results, record, datetime.now(UTC))
    return Row(
        model=name,
        method="parent" if inspection is None else recipe.backend,
        bits=(bits.nominal_bits, bits.quantized_bits, bits.whole_file_bits),
        metrics=primary_metrics(results),
        chance=chance_levels(tasks, recipe.eval),
    )


def _record(
    recipe: Recipe,
    bits: BitsReport,
    sha256: str,
    inspection: Inspection | None,
    parent: dict[str, Any],
    device: str,
) -> dict[str, Any]:
    """Return what a result says of the model: of a checkpoint also how it was made, as its own files have it."""
    made: dict[str, Any] = {"method": "none", "parent": parent}
    if inspection is not None:
        checkpoint_recipe = parse_yaml(inspection.recipe, "the checkpoint's recipe")
        made = {
            "method": inspection.method,
            "seed": checkpoint_recipe.get("seed"),
            "checkpoint_recipe": checkpoint_recipe,
            "calibration": inspection.calibration,
            "coverage": inspection.coverage,
            "parent": {"sha256": inspection.parent_sha256},
        }
    return {
        "role": "evaluation",
        "quantized": inspection is not None,
        **made,
        "recipe": recipe.to_dict(),
        "recipe_sha256": recipe.sha256(),
        "model_sha256": sha256,
        "bits": bits.model_dump(),
        "backend": None if inspection is None else recipe.backend,
        "device": device,
        "versions": package_versions(),
        "plugins": plugin_versions(registry().plugins),
    }
