"""Forecasts what a quantization will need: disk from headers and shapes, memory and time by timing samples.

No weight is read: what is timed is made of random numbers in the model's shapes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lowbit.contracts import LayerStatistics, StatisticsNeed, WeightQuantizer
from lowbit.modeling.layouts import layout_of, packer_for
from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.block_cost import BlockCost, BlockTrial, block_kinds, statistics_bytes
from lowbit.pipeline.composition_check import require_composition
from lowbit.pipeline.disk_rate import measure_disk
from lowbit.pipeline.make_checkpoint import diagnose
from lowbit.pipeline.measuring import Clock, Stopwatch
from lowbit.pipeline.prepare import model_folder
from lowbit.pipeline.quantization_time import FLOAT_BYTES, Work, quantization_seconds
from lowbit.pipeline.quantizer_cost import QuantizerCost, QuantizerTrial, measure_quantizers
from lowbit.pipeline.resources import require_device
from lowbit.pipeline.targets import plan_for
from lowbit.pipeline.training_forecast import forecast_training, seen_by_blocks
from lowbit.pipeline.training_time import training_seconds
from lowbit.pipeline.trial_model import TrialModel
from lowbit.quantization.plan import Coverage, QuantizationPlan
from lowbit.recipe import Recipe
from lowbit.registry import registry

SAMPLE_ROWS, SAMPLE_COLUMNS = 16, 512
QUANTIZER_BUDGET, BLOCK_BUDGET, TRAINING_BUDGET = 20.0, 8.0, 15.0
"""Seconds that timing may take, as far as the smallest samples allow."""


@dataclass(frozen=True)
class Forecast:
    """What a quantization will need.

    Args:
        coverage: Which share of the decoder will be quantized.
        quantized_bits: Bits a weight of the quantized layers, from packing a sample matrix.
        peak_memory_bytes: Estimated peak of anonymous memory above the imported libraries' own.
        working_disk_bytes: Journal and activations at their largest, while the run lasts.
        checkpoint_bytes: The finished safetensors files.
        training_operations: Floating-point operations of training and of generating tokens for it.
        seconds_by_part: What time is spent on: `statistics`, `quantizers`, `forward`, `files`, and parts of training.
        least_seconds: Time, if a training that may stop early stops as early as it can.
        dry_run_seconds: What this forecast took.
    """

    coverage: Coverage
    quantized_bits: float
    peak_memory_bytes: int
    working_disk_bytes: int
    checkpoint_bytes: int
    training_operations: float = 0.0
    seconds_by_part: Mapping[str, float] = field(default_factory=dict)
    least_seconds: float = 0.0
    dry_run_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Time that making the checkpoint takes, reading included, evaluation not."""
        return sum(self.seconds_by_part.values())


def forecast(recipe: Recipe, device: str = "cpu", clock: Clock = time.perf_counter) -> Forecast:
    """Forecast memory, disk, time and coverage of a recipe's quantization, on this machine, with torch's threads.

    Args:
        recipe: What will be done.
        device: Where.
        clock: What tells the time that samples take.

    Raises:
        LowbitError: The parts of the recipe do not go together, or the model or a rule does not hold up.
    """
    started = time.monotonic()
    require_composition(recipe, registry())
    require_device(device)
    source = TrialModel(model_folder(recipe), recipe.model.trust_remote_code, device)
    plan = plan_for(recipe, source.decoder, registry())
    rates = _rates(recipe, plan)
    packed = int(sum(rates[target.name].packed * target.weights for target in plan.targets() if target.name in rates))
    checkpoint = packed + _untouched_bytes(source, plan)
    work = _work(recipe, source, plan, checkpoint)
    watch = Stopwatch(source.device, clock)
    quantizers = _quantizer_costs(recipe, plan, work, watch)
    blocks = _block_costs(source, plan, work, watch)
    training = forecast_training(recipe, source, plan)
    disk = measure_disk(recipe.output_path or Path(), watch)
    seconds = quantization_seconds(work, blocks, quantizers, disk, recipe.reconstruction is not None)
    trained = training_seconds(recipe, source, plan, disk, watch, TRAINING_BUDGET)
    every = seconds | trained.seconds_by_part
    coverage = plan.coverage()
    return Forecast(
        coverage=coverage,
        quantized_bits=8 * packed / coverage.quantized_weights,
        peak_memory_bytes=max(_peak_memory(source, work, rates, blocks, quantizers), int(trained.peak_memory_bytes)),
        working_disk_bytes=2 * checkpoint + 2 * work.activation_bytes + training.working_disk_bytes,
        checkpoint_bytes=checkpoint,
        training_operations=training.operations,
        seconds_by_part=every,
        least_seconds=sum(every.values()) - trained.spared_seconds,
        dry_run_seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Rate:
    """Bytes that one quantized weight takes.

    Args:
        packed: In the file.
        unpacked: In memory, before its block is committed.
    """

    packed: float
    unpacked: float


def _rates(recipe: Recipe, plan: QuantizationPlan) -> dict[str, _Rate]:
    """Return the rate of every quantized target, from a sample matrix for each quantizer."""
    by_quantizer: dict[int, _Rate] = {}
    for quantizer in plan.quantizers.values():
        if id(quantizer) not in by_quantizer:
            by_quantizer[id(quantizer)] = _rate(quantizer, recipe.packer.name)
    return {name: by_quantizer[id(quantizer)] for name, quantizer in plan.quantizers.items()}


def _rate(quantizer: WeightQuantizer, packer: str) -> _Rate:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(SAMPLE_ROWS, SAMPLE_COLUMNS, generator=generator)
    statistics = None
    if quantizer.needs is not StatisticsNeed.NONE:
        identity = torch.eye(SAMPLE_COLUMNS)
        statistics = LayerStatistics(SAMPLE_COLUMNS, identity.diagonal(), 2 * identity)
    weight = quantizer.quantize(sample, statistics, generator)
    layout = layout_of(weight.spec(), packer_for(weight.format, packer).name)
    packed = sum(tensor.bytes for tensor in layout.values())
    unpacked = sum(tensor.nbytes for tensor in weight.tensors().values())
    return _Rate(packed / sample.numel(), unpacked / sample.numel())


def _untouched_bytes(source: StreamedModel, plan: QuantizationPlan) -> int:
    quantized = {target.parameter_name for target in plan.targets() if target.name in plan.quantizers}
    return source.stored_bytes(without=quantized)


def _work(recipe: Recipe, source: StreamedModel, plan: QuantizationPlan, checkpoint_bytes: int) -> Work:
    needed = plan.needs_statistics or recipe.reconstruction is not None
    samples, length = seen_by_blocks(recipe, source) if needed else (0, 0)
    stored = source.stored_bytes(without=set())
    return Work(plan, samples, length, source.config.hidden_size, stored, checkpoint_bytes)


def _quantizer_costs(
    recipe: Recipe, plan: QuantizationPlan, work: Work, watch: Stopwatch
) -> dict[tuple[int, int], QuantizerCost]:
    """Time every quantizer at every width of its matrices."""
    uses: dict[tuple[int, int], tuple[WeightQuantizer, set[int]]] = {}
    for target in plan.targets():
        quantizer = plan.quantizers.get(target.name)
        if quantizer is not None:
            uses.setdefault((id(quantizer), target.in_features), (quantizer, set()))[1].add(target.out_features)
    return measure_quantizers(
        {key: (quantizer, sorted(rows)) for key, (quantizer, rows) in uses.items()},
        lambda quantizer: QuantizerTrial(quantizer, recipe.packer.name, diagnose, watch, work.samples > 0),
        QUANTIZER_BUDGET,
    )


def _block_costs(source: TrialModel, plan: QuantizationPlan, work: Work, watch: Stopwatch) -> dict[int, BlockCost]:
    """Time a block of every kind; blocks of a kind share what was found."""
    costs: dict[int, BlockCost] = {}
    if not work.samples:
        return costs
    kinds = block_kinds(plan)
    for first, indices in kinds.items():
        with source.block(first):
            trial = BlockTrial(source, plan, first, work.length, watch, BLOCK_BUDGET / len(kinds))
            costs.update(dict.fromkeys(indices, trial.measure()))
    return costs


def _peak_memory(
    source: StreamedModel,
    work: Work,
    rates: Mapping[str, _Rate],
    blocks: Mapping[int, BlockCost],
    quantizers: Mapping[tuple[int, int], QuantizerCost],
) -> int:
    """Return the most of what is held while a block is worked on, or the embeddings, where those are more."""
    largest, plan = 0.0, work.plan
    for index, block in enumerate(source.decoder.blocks):
        targets = [target for target in plan.blocks[index] if target.name in rates]
        weights = sum(parameter.numel() for parameter in block.parameters()) * FLOAT_BYTES
        unpacked = sum(rates[target.name].unpacked * target.weights for target in targets)
        working = max(
            (quantizers[id(plan.quantizers[t.name]), t.in_features].peak_bytes.at(t.out_features) for t in targets),
            default=0.0,
        )
        held = weights + unpacked
        if index in blocks:
            held += statistics_bytes(plan, blocks[index].leaders)
            working = max(working, blocks[index].peak_bytes)
        largest = max(largest, held + working)
    if not work.samples:
        return int(largest)
    embeddings: int = source.config.vocab_size * source.config.hidden_size * FLOAT_BYTES
    return int(max(largest, embeddings))
