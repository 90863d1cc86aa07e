"""Forecasts what training will need of disk and arithmetic, from shapes and settings alone."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.prepare import calibration_request, training_length
from lowbit.pipeline.training import training_source
from lowbit.quantization.plan import QuantizationPlan
from lowbit.recipe import Recipe

FLOAT_BYTES = 4
# Latent weight, AdamW's two moments, and twice the best state.
TRAINED_COPIES = 5
# A multiplication and an addition a weight forward, twice that backward; the teacher runs forward only.
TEACHER_OPERATIONS, STUDENT_OPERATIONS = 2, 6


@dataclass(frozen=True)
class TrainingForecast:
    """What training will need beside what quantization needs.

    Args:
        working_disk_bytes: Activations of both streams, trained states and checkpoints, at their largest.
        operations: Floating-point operations of all forward and backward passes.
    """

    working_disk_bytes: int = 0
    operations: float = 0.0


def forecast_training(recipe: Recipe, source: StreamedModel, plan: QuantizationPlan) -> TrainingForecast:
    """Forecast a recipe's training.

    Args:
        recipe: Says what is trained, and how.
        source: The model.
        plan: What is quantized.
    """
    blocks = _reconstruction(recipe, source, plan)
    whole = _distillation(recipe, source, plan)
    written = _generation_operations(recipe, source)
    return TrainingForecast(
        blocks.working_disk_bytes + whole.working_disk_bytes,
        blocks.operations + whole.operations + written,
    )


def seen_by_blocks(recipe: Recipe, source: StreamedModel) -> tuple[int, int]:
    """Return how many sequences run through the blocks one by one, and how long they are."""
    if not recipe.trains:
        request = calibration_request(recipe, source)
        return request.n_samples, request.seq_len
    samples = training_samples(recipe, source)
    most = None if recipe.reconstruction is None else recipe.reconstruction.n_samples
    return min(samples, most or samples), training_length(recipe, source)


def _reconstruction(recipe: Recipe, source: StreamedModel, plan: QuantizationPlan) -> TrainingForecast:
    settings = recipe.reconstruction
    if settings is None:
        return TrainingForecast()
    length = training_length(recipe, source)
    samples = seen_by_blocks(recipe, source)[0]
    stream = samples * length * source.config.hidden_size * FLOAT_BYTES
    tokens = settings.batch_size * length
    passes = settings.steps * tokens * STUDENT_OPERATIONS + 2 * samples * length * TEACHER_OPERATIONS
    whole = sum(_trained_weights(plan, index) for index in range(len(plan.blocks)))
    state = whole * FLOAT_BYTES if recipe.distillation is not None else 0
    return TrainingForecast(4 * stream + state, float(passes * whole))


def _distillation(recipe: Recipe, source: StreamedModel, plan: QuantizationPlan) -> TrainingForecast:
    settings = recipe.distillation
    if settings is None:
        return TrainingForecast()
    length = training_length(recipe, source)
    trained = sum(_trained_weights(plan, index) for index in range(len(plan.blocks)))
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    operations = settings.steps * settings.batch_size * length * parameters
    return TrainingForecast(
        TRAINED_COPIES * trained * FLOAT_BYTES,
        float(operations * (TEACHER_OPERATIONS + STUDENT_OPERATIONS)),
    )


def training_samples(recipe: Recipe, source: StreamedModel) -> int:
    """Return how many training sequences there are."""
    kind, request = training_source(recipe), calibration_request(recipe, source)
    pieces = request.n_samples * (request.seq_len // training_length(recipe, source))
    generated = recipe.training_data.generated.n_samples
    return {"calibration": pieces, "generated": generated, "both": pieces + generated}[kind]


def _generation_operations(recipe: Recipe, source: StreamedModel) -> float:
    if not recipe.trains or training_source(recipe) == "calibration":
        return 0.0
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    length = training_length(recipe, source)
    return float(recipe.training_data.generated.n_samples * length * parameters * TEACHER_OPERATIONS)


def _trained_weights(plan: QuantizationPlan, block: int) -> int:
    return sum(target.weights for target in plan.blocks[block] if target.name in plan.quantizers)
