"""Forecasts what training will need: memory, disk and arithmetic, from shapes and settings alone."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.prepare import calibration_request, training_length
from lowbit.pipeline.training import training_source
from lowbit.quantization.plan import QuantizationPlan
from lowbit.recipe import Recipe

FLOAT_BYTES = 4
# Latent weight, gradient, and AdamW's two moments.
TRAINED_COPIES = 4
# What a fake-quantized weight keeps for the backward pass: the grouped weight, itself, and its codes.
KEPT_FOR_BACKWARD = 10
# Activations that a layer keeps for the backward pass: inputs and outputs, and about as much between layers.
ACTIVATION_COPIES = 2
# The chunk of logits of both models, their log-softmax, probabilities and gradients.
LOGIT_COPIES = 8
# A multiplication and an addition a weight forward, twice that backward; the teacher runs forward only.
TEACHER_OPERATIONS, STUDENT_OPERATIONS = 2, 6


@dataclass(frozen=True)
class TrainingForecast:
    """What training will need beside what quantization needs.

    Args:
        peak_memory_bytes: Estimated peak of one process's memory; 0 without training.
        working_disk_bytes: Activations of both streams, trained states and checkpoints, at their largest.
        operations: Floating-point operations of all forward and backward passes.
    """

    peak_memory_bytes: int = 0
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
        max(blocks.peak_memory_bytes, whole.peak_memory_bytes),
        blocks.working_disk_bytes + whole.working_disk_bytes,
        blocks.operations + whole.operations + written,
    )


def _reconstruction(recipe: Recipe, source: StreamedModel, plan: QuantizationPlan) -> TrainingForecast:
    settings = recipe.reconstruction
    if settings is None:
        return TrainingForecast()
    length = training_length(recipe, source)
    samples = settings.n_samples or _training_samples(recipe, source)
    stream = samples * length * source.config.hidden_size * FLOAT_BYTES
    trained = max(_trained_weights(plan, index) for index in range(len(plan.blocks)))
    features = max(_features(plan, index) for index in range(len(plan.blocks)))
    tokens = settings.batch_size * length
    kept = ACTIVATION_COPIES * tokens * features * FLOAT_BYTES
    memory = trained * (TRAINED_COPIES * FLOAT_BYTES + KEPT_FOR_BACKWARD) + kept
    passes = settings.steps * tokens * STUDENT_OPERATIONS + 2 * samples * length * TEACHER_OPERATIONS
    whole = sum(_trained_weights(plan, index) for index in range(len(plan.blocks)))
    state = whole * FLOAT_BYTES if recipe.distillation is not None else 0
    return TrainingForecast(int(memory), 4 * stream + state, float(passes * whole))


def _distillation(recipe: Recipe, source: StreamedModel, plan: QuantizationPlan) -> TrainingForecast:
    settings = recipe.distillation
    if settings is None:
        return TrainingForecast()
    length = training_length(recipe, source)
    trained = sum(_trained_weights(plan, index) for index in range(len(plan.blocks)))
    stored = source.stored_bytes(without=set())
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    tokens = (settings.micro_batch_size or settings.batch_size) * length
    features = [_features(plan, index) for index in range(len(plan.blocks))]
    hidden: int = source.config.hidden_size
    if settings.gradient_checkpointing:
        # Of every block only the input is kept; one block at a time is computed again.
        activations = tokens * (len(features) * hidden + ACTIVATION_COPIES * max(features)) * FLOAT_BYTES
        kept = max(_trained_weights(plan, index) for index in range(len(plan.blocks))) * KEPT_FOR_BACKWARD
    else:
        activations = ACTIVATION_COPIES * tokens * sum(features) * FLOAT_BYTES
        kept = trained * KEPT_FOR_BACKWARD
    logits = min(settings.chunk_elements, tokens * source.config.vocab_size) * LOGIT_COPIES * FLOAT_BYTES
    student = parameters * FLOAT_BYTES + trained * (TRAINED_COPIES - 1) * FLOAT_BYTES
    operations = settings.steps * settings.batch_size * length * parameters
    return TrainingForecast(
        int(stored + student + kept + activations + logits),
        (TRAINED_COPIES + 1) * trained * FLOAT_BYTES,
        float(operations * (TEACHER_OPERATIONS + STUDENT_OPERATIONS)),
    )


def _training_samples(recipe: Recipe, source: StreamedModel) -> int:
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


def _features(plan: QuantizationPlan, block: int) -> int:
    """Return the widths of what enters and leaves a block's layers, added up; experts see a part of the tokens."""
    return sum(target.in_features + target.out_features for target in plan.blocks[block] if target.expert in (None, 0))
