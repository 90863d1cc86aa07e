"""Adds up what training takes: the steps are counted, their pieces were timed."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field

import torch

from lowbit.contracts import OptimizationSettings
from lowbit.distillation.reconstruction import JUDGED_SAMPLES
from lowbit.distillation.trainer import held_out_samples
from lowbit.pipeline.block_cost import block_kinds
from lowbit.pipeline.disk_rate import DiskRate
from lowbit.pipeline.generation_trial import generation_seconds
from lowbit.pipeline.load import resolve_dtype
from lowbit.pipeline.measuring import Stopwatch
from lowbit.pipeline.prepare import model_folder, training_length
from lowbit.pipeline.training import training_source
from lowbit.pipeline.training_diagnostics import DEVIATION_SAMPLES, OUTPUT_SAMPLES
from lowbit.pipeline.training_forecast import seen_by_blocks, training_samples
from lowbit.pipeline.training_trial import PassCost, WeightCost, measure_block, measure_head, measure_weights
from lowbit.pipeline.trial_model import TrialModel
from lowbit.quantization.plan import QuantizationPlan
from lowbit.recipe import Recipe

FLOAT_BYTES = 4
BLOCK_COPIES = 6
"""Latent weight, gradient, AdamW's two moments, the full-precision weight to put back, the state to start from."""
STUDENT_COPIES = 4
"""Latent weight, gradient, and AdamW's two moments."""


@dataclass(frozen=True)
class TrainingTime:
    """How long training takes.

    Args:
        seconds_by_part: By `generation`, `reconstruction` and `distillation`, as far as the recipe has them.
        spared_seconds: How much of it is spared if the distillation stops as early as it can.
        peak_memory_bytes: Peak of one process's memory; 0 without training.
    """

    seconds_by_part: dict[str, float] = field(default_factory=dict)
    spared_seconds: float = 0.0
    peak_memory_bytes: float = 0.0


def training_seconds(
    recipe: Recipe, model: TrialModel, plan: QuantizationPlan, disk: DiskRate, watch: Stopwatch, budget: float
) -> TrainingTime:
    """Time the pieces of a recipe's training, and add them up.

    Args:
        recipe: Says what is trained, and how.
        model: Has the shapes.
        plan: What is quantized.
        disk: What files cost.
        watch: Times.
        budget: Seconds for timing.
    """
    parts: dict[str, float] = {}
    spared, peak = 0.0, 0.0
    if recipe.reconstruction is not None:
        parts["reconstruction"], peak = _reconstruction(recipe, model, plan, watch, budget / 3)
    if recipe.distillation is not None:
        parts["distillation"], spared, whole = _distillation(recipe, model, plan, disk, watch, budget / 3)
        peak = max(peak, whole)
    if recipe.trains and training_source(recipe) != "calibration":
        named = resolve_dtype(model_folder(recipe), "auto", watch.device.type)
        stored = getattr(model.config, "dtype", None)
        dtype = stored if named == "auto" and isinstance(stored, torch.dtype) else torch.float32
        length = training_length(recipe, model)
        generated = recipe.training_data.generated
        parts["generation"] = generation_seconds(model, generated, length, dtype, watch, budget / 3)
    return TrainingTime(parts, spared, peak)


@dataclass(frozen=True)
class _Pieces:
    """What a step over all blocks is made of, in seconds.

    Args:
        weights: Of the trained weights, all together.
        sequence: Of one sequence through all blocks.
        largest: Of one sequence through the block that needs most memory.
    """

    weights: WeightCost
    sequence: PassCost
    largest: PassCost


def _pieces(
    model: TrialModel,
    plan: QuantizationPlan,
    settings: OptimizationSettings,
    batch: tuple[int, int],
    watch: Stopwatch,
    budget: float,
) -> _Pieces:
    """Time weights of every quantizer and width, and one block of every kind, and add them up over the model."""
    kinds = block_kinds(plan)
    passes = []
    for first, indices in kinds.items():
        cost = measure_block(model, plan, first, batch, settings.precision, watch, budget / len(kinds))
        passes.append((cost, len(indices)))
    rows: dict[tuple[int, int], int] = {}
    counts: dict[tuple[int, int], int] = {}
    quantizers = {id(quantizer): quantizer for quantizer in plan.quantizers.values()}
    for target in plan.targets():
        if target.name in plan.quantizers:
            key = (id(plan.quantizers[target.name]), target.in_features)
            rows[key] = max(rows.get(key, 0), target.out_features)
            counts[key] = counts.get(key, 0) + target.weights
    costs = []
    for (identity, columns), most in rows.items():
        cost_of_one = measure_weights(quantizers[identity], columns, most, settings, watch)
        costs.append(cost_of_one.times(counts[identity, columns]))
    largest = max(passes, key=lambda pair: pair[0].peak_bytes)[0]
    return _Pieces(
        WeightCost(*(sum(values) for values in zip(*map(astuple, costs), strict=True))),
        PassCost(*(sum(values) for values in zip(*(astuple(one.times(n)) for one, n in passes), strict=True))),
        largest,
    )


def _reconstruction(
    recipe: Recipe, model: TrialModel, plan: QuantizationPlan, watch: Stopwatch, budget: float
) -> tuple[float, float]:
    """Return seconds and peak bytes of training block by block; the outputs to match are counted elsewhere."""
    settings = recipe.reconstruction
    assert settings is not None
    samples, length = seen_by_blocks(recipe, model)
    pieces = _pieces(model, plan, settings, (settings.batch_size, length), watch, budget)
    weights, sequence = pieces.weights, pieces.sequence
    step = weights.backward + weights.update + settings.batch_size * sequence.backward
    judged = min(samples, JUDGED_SAMPLES)
    looks = math.ceil(judged / settings.batch_size)
    seconds = settings.steps * step + 2 * judged * sequence.forward + looks * weights.forward + weights.freeze
    # The largest block stands for the share that its weights have of all.
    counts = [_trained_weights(plan, index) for index in range(len(plan.blocks))]
    kept = weights.peak_bytes * max(counts) / sum(counts)
    activations = settings.batch_size * pieces.largest.peak_bytes
    return seconds, max(counts) * BLOCK_COPIES * FLOAT_BYTES + kept + activations


def _distillation(
    recipe: Recipe, model: TrialModel, plan: QuantizationPlan, disk: DiskRate, watch: Stopwatch, budget: float
) -> tuple[float, float, float]:
    """Return the seconds of training the whole model, how many an early stop spares at most, and peak bytes."""
    settings = recipe.distillation
    assert settings is not None
    length, samples = training_length(recipe, model), training_samples(recipe, model)
    held_out = held_out_samples(samples, settings)
    micro = settings.sequences_at_once()
    pieces = _pieces(model, plan, settings, (micro, length), watch, budget)
    head, uniform = measure_head(model, settings, micro * length, watch)
    passes = math.ceil(settings.batch_size / micro)
    weights, sequence = pieces.weights, pieces.sequence
    remembered = samples * length * model.config.hidden_size * FLOAT_BYTES <= settings.teacher_memory
    teacher = 0.0 if remembered else sequence.forward
    again = 1 if settings.gradient_checkpointing else 0
    step = passes * (weights.backward + again * weights.forward) + weights.update
    step += settings.batch_size * (sequence.backward + again * sequence.forward + teacher + length * head.backward)
    looked = sequence.forward + teacher + length * head.forward
    together = not uniform and settings.micro_batch_size is None
    graphs = settings.batch_size if together else micro
    if not uniform and not together and passes > 1:
        step += passes * weights.forward + settings.batch_size * looked
    look = held_out * looked + math.ceil(held_out / micro) * weights.forward
    trained = sum(_trained_weights(plan, index) for index in range(len(plan.blocks))) * FLOAT_BYTES
    look += disk.write(trained)
    taken = settings.steps * step + settings.steps / settings.checkpoint_every * disk.write(3 * trained)
    looks = math.ceil(settings.steps / settings.evaluate_every)
    once = 2 * disk.read(model.stored_bytes(without=set())) + look + disk.write(3 * trained) + weights.freeze
    once += (2 * DEVIATION_SAMPLES + OUTPUT_SAMPLES) * (looked + sequence.forward)
    if remembered:
        once += min(samples, held_out + settings.steps * settings.batch_size) * sequence.forward
    # At the earliest, no look after the first one finds a better state.
    least = min(1.0, (settings.patience or looks) / looks)
    # While the last block is gone back through, what all others left for that is there, too.
    blocks = len(plan.blocks)
    kept = weights.peak_bytes / blocks + graphs * pieces.largest.peak_bytes
    if settings.gradient_checkpointing:
        # Of every block only the input is kept.
        kept += graphs * blocks * length * model.config.hidden_size * FLOAT_BYTES
    else:
        kept += weights.kept_bytes * graphs / micro + graphs * sequence.kept_bytes
    logits = min(settings.chunk_elements / model.config.vocab_size, graphs * length) * head.kept_bytes
    teacher_bytes = model.stored_bytes(without=set()) * _widening(recipe, model, watch)
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    memory = teacher_bytes + parameters * FLOAT_BYTES + (STUDENT_COPIES - 1) * trained + kept + logits
    if remembered:
        memory += samples * length * model.config.hidden_size * FLOAT_BYTES
    return once + taken + looks * look, (1 - least) * (taken + looks * look), memory


def _trained_weights(plan: QuantizationPlan, block: int) -> int:
    return sum(target.weights for target in plan.blocks[block] if target.name in plan.quantizers)


def _widening(recipe: Recipe, model: TrialModel, watch: Stopwatch) -> float:
    """Return how much larger the teacher is in memory than in its files: a CPU holds float16 as float32."""
    named = resolve_dtype(model_folder(recipe), "auto", watch.device.type)
    stored = getattr(model.config, "dtype", None)
    return 2.0 if named == "float32" and stored == torch.float16 else 1.0
