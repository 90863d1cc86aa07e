"""What is to be quantized, by which quantizer, and how much of the decoder that covers."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from lowbit.contracts import StatisticsNeed, WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.models import Decoder, WeightTarget, find_targets, other_matrices


@dataclass(frozen=True)
class QuantizationPlan:
    """Every weight target of the decoder, block by block, with its quantizer.

    Args:
        blocks: The targets of each block.
        quantizers: Quantizer by target name; a target that is absent stays as it is.
        others: Matrices of the blocks that are no targets (routers), with their sizes.
    """

    blocks: tuple[tuple[WeightTarget, ...], ...]
    quantizers: Mapping[str, WeightQuantizer]
    others: Mapping[str, int]

    @property
    def needs_statistics(self) -> bool:
        """Whether any quantizer needs to see the inputs of its layer."""
        return any(quantizer.needs is not StatisticsNeed.NONE for quantizer in self.quantizers.values())

    def needs(self, block: int) -> list[tuple[WeightTarget, StatisticsNeed]]:
        """Return what each quantized target of a block needs."""
        return [(t, self.quantizers[t.name].needs) for t in self.blocks[block] if t.name in self.quantizers]

    def targets(self) -> list[WeightTarget]:
        """Return every target, in order."""
        return [target for block in self.blocks for target in block]

    def coverage(self) -> Coverage:
        """Return which share of the decoder's matrices the plan quantizes."""
        skipped = {t.name: t.weights for t in self.targets() if t.name not in self.quantizers}
        quantized = sum(t.weights for t in self.targets() if t.name in self.quantizers)
        return Coverage(quantized, len(self.quantizers), skipped, dict(self.others))


@dataclass(frozen=True)
class Coverage:
    """Which share of the decoder's matrices is quantized, and the names of the rest.

    Args:
        quantized_weights: Weights in quantized targets.
        quantized_targets: Number of quantized targets.
        skipped: Sizes of targets that rules leave as they are, by name.
        others: Sizes of matrices that are no targets (routers), by name.
    """

    quantized_weights: int
    quantized_targets: int
    skipped: Mapping[str, int]
    others: Mapping[str, int]

    @property
    def share(self) -> float:
        """Quantized share of all matrix weights of the decoder blocks, experts and routers included."""
        total = self.quantized_weights + sum(self.skipped.values()) + sum(self.others.values())
        return self.quantized_weights / total if total else 0.0

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "share": self.share,
            "quantized_weights": self.quantized_weights,
            "quantized_targets": self.quantized_targets,
            "skipped": dict(self.skipped),
            "other_matrices": dict(self.others),
        }


def make_plan(decoder: Decoder, quantizers: Mapping[str, WeightQuantizer]) -> QuantizationPlan:
    """Lay the chosen quantizers over a decoder.

    Args:
        decoder: The model's blocks, on meta or not.
        quantizers: Quantizer by target name.

    Raises:
        LowbitError: Nothing is quantized.
    """
    blocks = decoder_targets(decoder)
    others = other_names(decoder)
    if not quantizers:
        raise LowbitError("the rules leave no layer to quantize; relax them, or use the method `none`")
    return QuantizationPlan(tuple(blocks), quantizers, others)


def other_names(decoder: Decoder) -> dict[str, int]:
    """Return the sizes of the blocks' matrices that are no targets, by name."""
    others: dict[str, int] = {}
    for index, block in enumerate(decoder.blocks):
        others.update(other_matrices(block, decoder.block_name(index)))
    return others


def decoder_targets(decoder: Decoder) -> list[tuple[WeightTarget, ...]]:
    """Return the weight targets of each block; a weight that two blocks share appears in the first only."""
    seen: set[int] = set()
    result = []
    for index, block in enumerate(decoder.blocks):
        kept = []
        for target in find_targets(block, decoder.block_name(index)):
            module = block.get_submodule(target.module.removeprefix(decoder.block_name(index)).lstrip("."))
            parameter = getattr(module, target.parameter)
            if id(parameter) not in seen:
                kept.append((target, id(parameter)))
        seen.update(identity for _, identity in kept)
        result.append(tuple(target for target, _ in kept))
    return result


def require_covered(promised: Iterable[str], quantized: Container[str]) -> None:
    """Check that every promised target was quantized.

    Raises:
        LowbitError: With the names of the layers that were not.
    """
    missing = [name for name in promised if name not in quantized]
    if missing:
        raise LowbitError(f"{len(missing)} layers were promised but not quantized: {', '.join(missing[:20])}")
