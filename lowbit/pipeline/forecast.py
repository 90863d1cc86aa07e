"""Forecasts what a quantization will need, from file headers and shapes; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lowbit.contracts import LayerStatistics, StatisticsNeed, WeightQuantizer
from lowbit.modeling.layouts import layout_of, packer_for
from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.composition_check import require_composition
from lowbit.pipeline.prepare import calibration_request, model_folder
from lowbit.pipeline.targets import plan_for
from lowbit.pipeline.training_forecast import forecast_training
from lowbit.quantization.plan import Coverage, QuantizationPlan
from lowbit.recipe import Recipe
from lowbit.registry import registry

FLOAT_BYTES = 4
SAMPLE_ROWS, SAMPLE_COLUMNS = 16, 512
# Beside the matrix at work: its dequantized form, the repeated scales and products that it is made of, and the error.
MATRIX_COPIES = 6
# A quantizer that takes a Hessian usually copies and factors it.
HESSIAN_COPIES = 2
ACTIVATION_COPIES = 4


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
    """

    coverage: Coverage
    quantized_bits: float
    peak_memory_bytes: int
    working_disk_bytes: int
    checkpoint_bytes: int
    training_operations: float = 0.0


def forecast(recipe: Recipe, device: str = "cpu") -> Forecast:
    """Forecast memory, disk and coverage of a recipe's quantization.

    Raises:
        LowbitError: The parts of the recipe do not go together, or the model or a rule does not hold up.
    """
    require_composition(recipe, registry())
    source = StreamedModel(model_folder(recipe), recipe.model.trust_remote_code, device)
    plan = plan_for(recipe, source.decoder, registry())
    rates = _rates(recipe, plan)
    packed = int(sum(rates[target.name].packed * target.weights for target in plan.targets() if target.name in rates))
    untouched = _untouched_bytes(source, plan)
    activations = _activation_bytes(recipe, source) if plan.needs_statistics else 0
    coverage = plan.coverage()
    training = forecast_training(recipe, source, plan)
    return Forecast(
        coverage=coverage,
        quantized_bits=8 * packed / coverage.quantized_weights,
        peak_memory_bytes=max(_peak_memory(source, plan, recipe, rates), training.peak_memory_bytes),
        working_disk_bytes=2 * (packed + untouched) + 2 * activations + training.working_disk_bytes,
        checkpoint_bytes=packed + untouched,
        training_operations=training.operations,
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


def _activation_bytes(recipe: Recipe, source: StreamedModel) -> int:
    hidden: int = source.config.hidden_size
    request = calibration_request(recipe, source)
    return request.n_samples * request.seq_len * hidden * FLOAT_BYTES


def _peak_memory(source: StreamedModel, plan: QuantizationPlan, recipe: Recipe, rates: Mapping[str, _Rate]) -> int:
    """Return the largest block with everything that is held beside it, plus one sample's activations."""
    largest = 0
    for index, block in enumerate(source.decoder.blocks):
        targets = [target for target in plan.blocks[index] if target.name in rates]
        weights = sum(parameter.numel() for parameter in block.parameters()) * FLOAT_BYTES
        unpacked = sum(rates[target.name].unpacked * target.weights for target in targets)
        matrix = max((target.weights for target in targets), default=0) * FLOAT_BYTES
        statistics, widest = _statistics_bytes(plan, index)
        held = weights + unpacked + MATRIX_COPIES * matrix + statistics + HESSIAN_COPIES * widest
        largest = max(largest, int(held))
    if not plan.needs_statistics:
        return largest
    embeddings: int = source.config.vocab_size * source.config.hidden_size * FLOAT_BYTES
    width = max((max(t.in_features, t.out_features) for t in plan.targets()), default=0)
    return (
        max(largest, embeddings) + ACTIVATION_COPIES * calibration_request(recipe, source).seq_len * width * FLOAT_BYTES
    )


def _statistics_bytes(plan: QuantizationPlan, block: int) -> tuple[int, int]:
    """Return the bytes of one block's running sums and of the largest; shared ones are counted once a layer."""
    powers = {StatisticsNeed.NONE: None, StatisticsNeed.SECOND_MOMENT: 1, StatisticsNeed.HESSIAN: 2}
    needs = [(target, powers[need]) for target, need in plan.needs(block)]
    sizes = [target.in_features**power * FLOAT_BYTES for target, power in needs if power is not None]
    return sum(sizes), max(sizes, default=0)
