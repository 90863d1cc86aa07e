"""The quantization engine: blocks in order, each from its inputs to its committed packed form."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lowbit.calibration import BlockObserver
from lowbit.contracts import (
    BlockStore,
    LayerReport,
    LayerStatistics,
    QuantizedBlock,
    QuantizedLayer,
    QuantizedWeight,
    RunEvents,
    StatisticsNeed,
    Stream,
    WeightQuantizer,
)
from lowbit.errors import LowbitError, QuantizationWarning
from lowbit.models import WeightTarget, read_weight, write_weight
from lowbit.models.capture import BlockCall
from lowbit.models.soundness import require_finite
from lowbit.quantization.block_training import BlockTask, BlockTrainer, TrainableWeight, TrainedBlock
from lowbit.quantization.plan import QuantizationPlan


class BlockwiseModel(Protocol):
    """A model whose blocks are in memory only while they are worked on."""

    @property
    def model(self) -> nn.Module:
        """The whole model; what is not loaded is on the meta device."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """Load a block as float32 for the time of the context."""

    def untouched(self, index: int, targets: Sequence[str]) -> dict[str, Tensor]:
        """Return a block's tensors that belong to none of the parameters named, in their stored dtype."""

    def calls(self, tokens: Tensor, on_entry: Callable[[Tensor], None] | None) -> list[BlockCall]:
        """Record how the model calls its blocks.

        Args:
            tokens: int64 [samples, length]; only the first sample is used unless `on_entry` is given.
            on_entry: Called with the hidden states [1, length, hidden] that enter the first block, sample by sample.
        """


@dataclass(frozen=True)
class Engine:
    """Quantizes a decoder block by block.

    Memory holds one block, the sums of its statistics and one sample's activations at a time; the activations between
    blocks lie in the store. With statistics, each block is run twice on the inputs that the quantized blocks before it
    produced: once as it was, to see what enters its layers, and once quantized, for the next block.

    Args:
        source: The model.
        plan: Which quantizer works on which target.
        store: Where finished blocks and activations are kept.
        events: Observers.
        diagnose: Returns plugins' numbers about one quantized weight.
        seed: Decides the quantizers' random draws, together with each target's name.
        trainer: Trains each block after it was quantized; `None` trains nothing.
    """

    source: BlockwiseModel
    plan: QuantizationPlan
    store: BlockStore
    events: RunEvents
    diagnose: Callable[[QuantizedWeight], Mapping[str, float]]
    seed: int
    trainer: BlockTrainer | None = None

    def run(self, tokens: Tensor | None) -> None:
        """Quantize every block that the store does not hold yet.

        Args:
            tokens: Calibration or training tokens int64 [samples, length]; needed if any quantizer needs statistics,
                or blocks are trained.

        Raises:
            LowbitError: A weight is not finite, or a quantizer breaks its contract.
        """
        blocks = len(self.plan.blocks)
        finished = self.store.finished()
        self.events.run_started(blocks, finished)
        if finished == blocks:
            return
        needed = self.plan.needs_statistics or self.trainer is not None
        calls = self._prepare_calls(tokens, finished) if needed else None
        for index in range(finished, blocks):
            block = self._quantize_block(index, calls)
            self.store.commit(block)
            self.events.block_quantized(block, blocks)

    def _prepare_calls(self, tokens: Tensor | None, finished: int) -> list[BlockCall]:
        if tokens is None:
            raise LowbitError("this method needs calibration data: give --calibration NAME or a file")
        if self.store.has_activations(finished):
            return self.source.calls(tokens, None)
        if finished:
            raise LowbitError(f"the journal lacks the inputs of block {finished}; delete it and start again")
        with self.store.write_activations(0) as writer:
            return self.source.calls(tokens, writer.append)

    @torch.no_grad()
    def _quantize_block(self, index: int, calls: list[BlockCall] | None) -> QuantizedBlock:
        started = time.monotonic()
        targets = [t for t in self.plan.blocks[index] if t.name in self.plan.quantizers]
        with self.source.block(index) as block:
            observer = BlockObserver(self.source.model, self.plan.needs(index))
            if calls is not None and not observer.idle:
                for hidden in self.store.activations(index):
                    with observer.watching():
                        calls[index].run(block, hidden)
            made = self._quantize_targets(index, targets, observer)
            trained = self._train(index, block, calls, targets, made)
            weights = {name: quantized for name, (quantized, _) in made.items()} | dict(trained.weights)
            reports = [
                self._report(target, made[target.name], weights[target.name], observer.statistics(target))
                for target in targets
            ]
            if calls is not None:
                for target in targets:
                    write_weight(self.source.model, target, weights[target.name].dequantize())
            untouched = self.source.untouched(index, [target.parameter_name for target in targets])
            for name, tensor in untouched.items():
                require_finite(tensor, name)
            if calls is not None and index + 1 < len(self.plan.blocks):
                self._advance(index, block, calls[index])
        return QuantizedBlock(
            index,
            weights,
            frozenset(target.name for target in targets if target.expert is not None),
            untouched,
            tuple(reports),
            time.monotonic() - started,
            trained.state,
            trained.record or None,
        )

    def _train(
        self,
        index: int,
        block: nn.Module,
        calls: list[BlockCall] | None,
        targets: Sequence[WeightTarget],
        made: Mapping[str, tuple[QuantizedWeight, tuple[str, ...]]],
    ) -> TrainedBlock:
        """Train the block's quantized weights, if there is a trainer, and store what the next block shall match."""
        if self.trainer is None or calls is None:
            return TrainedBlock({}, {}, {})
        stream: Stream = "reference" if self.trainer.reference == "parent" and index > 0 else "quantized"
        with self.store.write_activations(index + 1, "reference") as writer:
            for hidden in self.store.activations(index, stream):
                writer.append(calls[index].run(block, hidden))
        samples = sum(1 for _ in self.store.activations(index))
        weights = [TrainableWeight(t, self.plan.quantizers[t.name], made[t.name][0]) for t in targets]
        return self.trainer.train(
            BlockTask(
                index,
                self.source.model,
                block,
                weights,
                run=lambda hidden: calls[index].run(block, hidden),
                samples=samples,
                inputs=lambda positions: self.store.batch(index, positions),
                outputs=lambda positions: self.store.batch(index + 1, positions, "reference"),
            )
        )

    def _advance(self, index: int, block: nn.Module, call: BlockCall) -> None:
        """Store what the quantized block makes of its inputs."""
        with self.store.write_activations(index + 1) as writer:
            for hidden in self.store.activations(index):
                writer.append(call.run(block, hidden))

    def _quantize_targets(
        self, index: int, targets: Sequence[WeightTarget], observer: BlockObserver
    ) -> dict[str, tuple[QuantizedWeight, tuple[str, ...]]]:
        """Quantize a block's weights one after the other, and tell of each."""
        made = {}
        for number, target in enumerate(targets, 1):
            started = time.monotonic()
            made[target.name] = self._quantize_target(target, observer)
            seconds = time.monotonic() - started
            self.events.layer_quantized(QuantizedLayer(target.name, index, number, len(targets), seconds))
        return made

    def _quantize_target(
        self, target: WeightTarget, observer: BlockObserver
    ) -> tuple[QuantizedWeight, tuple[str, ...]]:
        """Return the quantized weight and what its quantizer warned of."""
        weight = read_weight(self.source.model, target).contiguous()
        require_finite(weight, target.name)
        statistics = observer.statistics(target)
        if statistics is not None:
            _require_finite_inputs(statistics, target.name)
        with _kept_warnings() as notes:
            quantized = _checked(
                self.plan.quantizers[target.name], weight, statistics, self._generator(target.name), target
            )
        return quantized, tuple(notes)

    def _report(
        self,
        target: WeightTarget,
        made: tuple[QuantizedWeight, tuple[str, ...]],
        final: QuantizedWeight,
        statistics: LayerStatistics | None,
    ) -> LayerReport:
        """Describe a weight as it leaves the block, and, if it was trained, as it was before."""
        untrained, notes = made
        weight = read_weight(self.source.model, target)
        return LayerReport(
            name=target.name,
            weights=target.weights,
            nominal_bits=final.nominal_bits,
            relative_error=_relative_error(weight, final.dequantize()),
            calibration_tokens=_tokens(self.plan.quantizers[target.name], statistics),
            diagnostics=self.diagnose(final),
            notes=notes,
            untrained={} if final is untrained else self.diagnose(untrained),
        )

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _checked(
    quantizer: WeightQuantizer,
    weight: Tensor,
    statistics: LayerStatistics | None,
    generator: torch.Generator,
    target: WeightTarget,
) -> QuantizedWeight:
    """Quantize, and hold the quantizer to its contract."""
    try:
        quantized = quantizer.quantize(weight, statistics, generator)
    except LowbitError:
        raise
    except Exception as error:
        raise LowbitError(
            f"quantizer {quantizer.name} failed on {target.name}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(quantized, QuantizedWeight):
        raise LowbitError(
            f"quantizer {quantizer.name} returned {type(quantized).__name__} for {target.name}; "
            "it must return a QuantizedWeight"
        )
    expected = (target.out_features, target.in_features)
    try:
        shape = quantized.shape
    except ValueError as error:
        raise LowbitError(f"quantizer {quantizer.name} broke its format on {target.name}: {error}") from error
    if shape != expected:
        raise LowbitError(f"quantizer {quantizer.name} returned shape {shape} for {target.name}; expected {expected}")
    return quantized


def _require_finite_inputs(statistics: LayerStatistics, name: str) -> None:
    if not bool(torch.isfinite(statistics.second_moment).all()):
        columns = int((~torch.isfinite(statistics.second_moment)).sum())
        raise LowbitError(
            f"the inputs of {name} are not finite in {columns} of {len(statistics.second_moment)} columns; "
            "the model overflows on the calibration text: give other text, or check the parent"
        )


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Collect the quantizer's own warnings and pass all others on."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", QuantizationWarning)
        yield notes
    for warning in caught:
        if issubclass(warning.category, QuantizationWarning):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _relative_error(weight: Tensor, dense: Tensor) -> float:
    norm = float(weight.square().sum())
    return float((weight - dense).square_().sum()) / norm if norm else 0.0


def _tokens(quantizer: WeightQuantizer, statistics: LayerStatistics | None) -> int | None:
    if quantizer.needs is StatisticsNeed.NONE:
        return None
    return 0 if statistics is None else statistics.tokens
