"""One cell of the ablation: one variant with one seed, from its recipe to its perplexity, and its file."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ablation_texts import Settings, judge
from methods_cells import CELLS, Job, signature_of

import lowbit.distillation
from lowbit.contracts import StatisticsNeed
from lowbit.durable import write_json
from lowbit.errors import LowbitError
from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.identity import core_contents, plugin_versions
from lowbit.pipeline.load import load
from lowbit.pipeline.make_checkpoint import GENERATED, journal_path
from lowbit.pipeline.prepare import model_folder, training_length
from lowbit.pipeline.quantize import HookEvents, QuantizationOutcome, cost_path, quantize_to
from lowbit.pipeline.training import training_source, training_tokens
from lowbit.recipe import Recipe, canonical_sha256, parse_override, resolve_recipe
from lowbit.registry import content_of, registry

METHOD = "dbllm"
PARENT = "none"
WORK = "work"


@dataclass(frozen=True)
class AblationJob:
    """What a cell is made from.

    Args:
        label: What messages call it.
        overrides: Changes of the base recipe; `None` stands for the parent.
        seed: Decides the calibration windows, the generated tokens and the order of the data.
    """

    label: str
    overrides: tuple[str, ...] | None
    seed: int


@dataclass(frozen=True)
class AblationCell:
    """What one job gave.

    Args:
        key: Names the recipe, whatever the seed.
        label: What the job was called.
        seed: Of the job.
        signature: What the cell depends on.
        core: Hashes of the core's code; recorded, not compared.
        date: When it was made.
        recipe_sha256: Of the whole recipe.
        task: The task, of a token perplexity with its context length.
        metric: The task's metric.
        perplexity: Its value; `None` where it is not finite.
        evaluated: Windows or pages.
        bits: Nominal, linear and file.
        seconds: What quantization and training took; the writing of generated tokens is not in it.
        tokens: How many tokens training processed: sequences a step, times steps taken, times length.
        data: Which tokens those were, with their hash.
        steps: Steps taken by stage, and the step that distillation kept.
        error: Why there is no result.
    """

    key: str
    label: str
    seed: int
    signature: dict[str, Any]
    core: dict[str, str]
    date: str
    recipe_sha256: str
    task: str = ""
    metric: str = ""
    perplexity: float | None = None
    evaluated: int | None = None
    bits: tuple[float, float, float] | None = None
    seconds: float | None = None
    tokens: int | None = None
    data: dict[str, Any] | None = None
    steps: dict[str, int] | None = None
    error: str | None = None


def recipe_of(job: AblationJob, settings: Settings) -> Recipe:
    """Return the recipe of a job.

    Raises:
        LowbitError: The base recipe or an override does not hold up.
    """
    flags = settings.flags(job.seed)
    if job.overrides is None:
        return resolve_recipe(registry(), PARENT, flags=flags)
    if settings.preset is not None:
        flags["preset"] = settings.preset
    method = settings.config.get("method") or METHOD
    return resolve_recipe(registry(), method, settings.config, flags, map(parse_override, job.overrides))


def is_seeded(recipe: Recipe) -> bool:
    """Say whether the seed plays a part: in training, or through the calibration of the quantizer."""
    if recipe.quantizer is None:
        return False
    return recipe.trains or registry().quantizer(recipe.quantizer.name).needs is not StatisticsNeed.NONE


def recipe_key(recipe: Recipe) -> str:
    """Return what names a recipe, whatever its seed, paths and preset: jobs with the same one share their cells."""
    return canonical_sha256(_portable(recipe) | {"seed": None, "preset": None})[:16]


def _portable(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's keys without the paths of this machine, and with the source of training tokens spelled out."""
    plain = recipe.to_dict()
    del plain["model"]["path"], plain["eval"]["data_dir"], plain["output_path"]
    source = plain["calibration"]["source"]
    plain["calibration"]["source"] = None if source is None else Path(source).name
    plain["training_data"]["source"] = training_source(recipe)
    return plain


def signature(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Return everything but lowbit's core that a cell depends on, without paths."""
    found = signature_of(Job(settings.model, recipe.method, None, recipe.seed), recipe)
    losses = () if recipe.distillation is None else recipe.distillation.loss
    sources = [registry().source("distillation loss", loss.name) for loss in losses]
    return found | {
        "recipe": _portable(recipe),
        "plugins": found["plugins"] | plugin_versions(sources),
        "split": settings.split,
    }


def cell_file(job: AblationJob, settings: Settings) -> Path:
    """Return where a job's cell lies."""
    return settings.folder / CELLS / f"{recipe_key(recipe_of(job, settings))}__{job.seed}.json"


def read_cell(file: Path) -> AblationCell:
    """Read a cell back."""
    content = json.loads(file.read_text(encoding="utf-8"))
    bits = content["bits"]
    return AblationCell(**{**content, "bits": None if bits is None else tuple(bits)})


def finished(job: AblationJob, settings: Settings) -> AblationCell | None:
    """Return the cell of a job if it is there, without an error, and depends on what it would depend on now."""
    file = cell_file(job, settings)
    cell = read_cell(file) if file.is_file() else None
    if cell is None or cell.error is not None:
        return None
    now = json.loads(json.dumps(signature(recipe_of(job, settings), settings)))
    return cell if cell.signature == now else None


def run_job(job: AblationJob, settings: Settings) -> AblationCell:
    """Make a cell and write it; an error becomes part of it."""
    recipe = recipe_of(job, settings)
    cell = AblationCell(
        recipe_key(recipe),
        job.label,
        job.seed,
        signature(recipe, settings),
        {**core_contents(recipe), lowbit.distillation.__name__: content_of(lowbit.distillation)},
        datetime.now(UTC).isoformat(timespec="seconds"),
        recipe.sha256(),
    )
    try:
        cell = _parent(cell, recipe, settings) if recipe.quantizer is None else _measured(cell, recipe, settings)
    except Exception as error:
        cell = replace(cell, error=f"{type(error).__name__}: {error}")
    write_json(cell_file(job, settings), asdict(cell))
    return cell


def _parent(cell: AblationCell, recipe: Recipe, settings: Settings) -> AblationCell:
    folder = model_folder(recipe)
    model = load(folder, "dense", recipe.model.dtype, "cpu", recipe.model.trust_remote_code)
    return _judged(cell, model, folder, recipe, settings)


def _measured(cell: AblationCell, recipe: Recipe, settings: Settings) -> AblationCell:
    """Quantize, train and judge; the checkpoint and, unless the process is ended, its journal are deleted."""
    output = work_folder(settings, recipe.seed) / cell.key
    try:
        outcome = quantize_to(recipe, output, HookEvents(recipe))
        model = load(output, "dense", recipe.model.dtype, "cpu")
        cell = _judged(_with_costs(cell, recipe, outcome), model, output, recipe, settings)
    except Exception:
        shutil.rmtree(journal_path(output), ignore_errors=True)
        raise
    finally:
        shutil.rmtree(output, ignore_errors=True)
        cost_path(output).unlink(missing_ok=True)
    return cell


def _judged(cell: AblationCell, model: Any, folder: Path, recipe: Recipe, settings: Settings) -> AblationCell:
    metric, evaluated = judge(model, folder, recipe, settings)
    value = metric.value if math.isfinite(metric.value) else None
    return replace(cell, task=metric.task, metric=metric.name, perplexity=value, evaluated=evaluated)


def _with_costs(cell: AblationCell, recipe: Recipe, outcome: QuantizationOutcome) -> AblationCell:
    bits = outcome.bits
    training = outcome.training or {}
    steps, sequences = {}, 0
    if recipe.reconstruction is not None:
        # Every block takes as many steps; together they process each sequence once.
        steps["reconstruction"] = max(len(block["losses"]) for block in training["reconstruction"])
        sequences += steps["reconstruction"] * recipe.reconstruction.batch_size
    if recipe.distillation is not None:
        steps["distillation"] = len(training["distillation"]["losses"])
        steps["distillation_best"] = training["distillation"]["best_step"]
        sequences += steps["distillation"] * recipe.distillation.batch_size
    return replace(
        cell,
        bits=(bits.nominal_bits, bits.quantized_bits, bits.whole_file_bits),
        seconds=outcome.cost.get("seconds"),
        tokens=sequences * training["tokens"]["seq_len"] if training else 0,
        data=training.get("tokens"),
        steps=steps,
    )


def work_folder(settings: Settings, seed: int) -> Path:
    """Return where a seed's checkpoints are made, with the generated tokens that its variants share beside them."""
    return settings.folder / WORK / f"seed{seed}"


def generation_key(job: AblationJob, settings: Settings) -> tuple[str, int] | None:
    """Return what names the generated tokens that a job trains on; `None` where it trains on none."""
    if job.overrides is None:
        return None
    recipe = recipe_of(job, settings)
    if not recipe.trains or training_source(recipe) == "calibration":
        return None
    return recipe.training_data.generated.model_dump_json(), job.seed


def write_generated(job: AblationJob, settings: Settings) -> None:
    """Let the parent write the tokens that a job trains on, before any job's time is taken."""
    recipe = recipe_of(job, settings)
    generated = recipe.training_data.model_copy(update={"source": "generated"})
    with suppress(LowbitError):  # The cells that need the tokens meet the same error, and keep it.
        source = StreamedModel(model_folder(recipe), recipe.model.trust_remote_code, "cpu")
        length = training_length(recipe, source)
        store = work_folder(settings, recipe.seed) / GENERATED
        training_tokens(
            recipe.model_copy(update={"training_data": generated}), model_folder(recipe), None, length, "cpu", store
        )
