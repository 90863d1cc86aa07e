"""Forecasts what a quantization will need, from file headers and shapes; no weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lowbit.contracts import LayerStatistics, StatisticsNeed, WeightQuantizer
from lowbit.modeling.layouts import layout_of, packer_for
from lowbit.models import WeightTarget
from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.quantize import model_folder
from lowbit.pipeline.targets import plan_for
from lowbit.quantization.plan import Coverage, QuantizationPlan
from lowbit.recipe import Recipe
from lowbit.registry import registry

FLOAT_BYTES = 4
SAMPLE_ROWS, SAMPLE_COLUMNS = 16, 512
# A quantizer's temporaries beside the matrix itself: its dequantized copy, codes and a working copy.
TEMPORARY_COPIES = 3


@dataclass(frozen=True)
class Forecast:
    """What a quantization will need.

    Args:
        coverage: Which share of the decoder will be quantized.
        quantized_bits: Bits a weight of the quantized layers, from packing a sample matrix.
        peak_memory_bytes: Estimated peak of anonymous memory above the imported libraries' own.
        working_disk_bytes: Journal and activations at their largest, while the run lasts.
        checkpoint_bytes: The finished safetensors files.
    """

    coverage: Coverage
    quantized_bits: float
    peak_memory_bytes: int
    working_disk_bytes: int
    checkpoint_bytes: int


def forecast(recipe: Recipe, device: str = "cpu") -> Forecast:
    """Forecast memory, disk and coverage of a recipe's quantization.

    Raises:
        LowbitError: The model or a rule does not hold up.
    """
    source = StreamedModel(model_folder(recipe), recipe.model.trust_remote_code, device)
    plan = plan_for(recipe, source.decoder, registry())
    packed = _packed_bytes(recipe, plan)
    untouched = _untouched_bytes(source, plan)
    activations = _activation_bytes(recipe, source) if plan.needs_statistics else 0
    coverage = plan.coverage()
    return Forecast(
        coverage=coverage,
        quantized_bits=8 * packed / coverage.quantized_weights,
        peak_memory_bytes=_peak_memory(source, plan, recipe),
        working_disk_bytes=2 * (packed + untouched) + 2 * activations,
        checkpoint_bytes=packed + untouched,
    )


def _packed_bytes(recipe: Recipe, plan: QuantizationPlan) -> int:
    """Scale the packed size of a sample matrix to every target."""
    rates: dict[int, float] = {}
    total = 0.0
    for target in plan.targets():
        quantizer = plan.quantizers.get(target.name)
        if quantizer is None:
            continue
        if id(quantizer) not in rates:
            rates[id(quantizer)] = _bytes_a_weight(quantizer, recipe.packer.name)
        total += rates[id(quantizer)] * target.weights
    return int(total)


def _bytes_a_weight(quantizer: WeightQuantizer, packer: str) -> float:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(SAMPLE_ROWS, SAMPLE_COLUMNS, generator=generator)
    statistics = None
    if quantizer.needs is not StatisticsNeed.NONE:
        identity = torch.eye(SAMPLE_COLUMNS)
        statistics = LayerStatistics(SAMPLE_COLUMNS, identity.diagonal(), 2 * identity)
    weight = quantizer.quantize(sample, statistics, generator)
    layout = layout_of(weight.spec(), packer_for(weight.format, packer).name)
    return sum(tensor.bytes for tensor in layout.values()) / sample.numel()


def _untouched_bytes(source: StreamedModel, plan: QuantizationPlan) -> int:
    quantized = {target.parameter_name for target in plan.targets() if target.name in plan.quantizers}
    return source.stored_bytes(without=quantized)


def _activation_bytes(recipe: Recipe, source: StreamedModel) -> int:
    hidden: int = source.config.hidden_size
    return recipe.calibration.n_samples * _length(recipe, source) * hidden * FLOAT_BYTES


def _length(recipe: Recipe, source: StreamedModel) -> int:
    positions = getattr(source.config, "max_position_embeddings", None) or 2048
    return recipe.calibration.seq_len or min(2048, positions)


def _peak_memory(source: StreamedModel, plan: QuantizationPlan, recipe: Recipe) -> int:
    """Return the largest float32 block with statistics, one matrix's temporaries and one sample's activations."""
    largest = 0
    for index, block in enumerate(source.decoder.blocks):
        weights = sum(parameter.numel() for parameter in block.parameters()) * FLOAT_BYTES
        matrix = max((target.weights for target in plan.blocks[index]), default=0) * FLOAT_BYTES
        largest = max(largest, weights + TEMPORARY_COPIES * matrix + _statistics_bytes(plan, index))
    if not plan.needs_statistics:
        return largest
    embeddings: int = source.config.vocab_size * source.config.hidden_size * FLOAT_BYTES
    widest = max((max(t.in_features, t.out_features) for t in plan.targets()), default=0)
    sample = _length(recipe, source) * widest * FLOAT_BYTES * 4
    return max(largest, embeddings) + sample


def _statistics_bytes(plan: QuantizationPlan, block: int) -> int:
    """Return the bytes of one block's running sums; layers with the same input size are counted as sharing none."""
    needs: Iterable[tuple[WeightTarget, StatisticsNeed]] = plan.needs(block)
    sizes = {StatisticsNeed.NONE: 0, StatisticsNeed.SECOND_MOMENT: 1, StatisticsNeed.HESSIAN: 2}
    return sum(target.in_features ** sizes[need] * FLOAT_BYTES for target, need in needs if sizes[need])
