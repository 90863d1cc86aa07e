"""The quantization engine: blocks in order, each from its inputs to its committed packed form."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from lowbit.calibration import BlockObserver
from lowbit.contracts import (
    BlockStore,
    LayerReport,
    QuantizedBlock,
    QuantizedLayer,
    QuantizedWeight,
    Ranks,
    RunEvents,
    Stream,
)
from lowbit.errors import LowbitError
from lowbit.models import WeightTarget, read_weight, write_weight
from lowbit.models.capture import BlockCall
from lowbit.models.freed_memory import release_freed_memory
from lowbit.models.soundness import require_finite
from lowbit.quantization.block_training import BlockTask, BlockTrainer, TrainableWeight, TrainedBlock
from lowbit.quantization.exchange import Formats, share_weights
from lowbit.quantization.one_target import (
    Diagnose,
    QuantizedTarget,
    counted_tokens,
    quantize_target,
    report_target,
)
from lowbit.quantization.plan import QuantizationPlan
from lowbit.quantization.ranks import OneRank, agreed
from lowbit.quantization.sharing import assign_targets, own_samples


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
class _Samples:
    """The calibration samples, as they go through the blocks.

    Args:
        calls: How the model calls each block.
        number: How many samples there are.
        own: Those that run through the blocks in this process.
    """

    calls: Sequence[BlockCall]
    number: int
    own: range


@dataclass(frozen=True)
class Engine:
    """Quantizes a decoder block by block.

    Memory holds one block, the sums of its statistics and one sample's activations at a time; the activations between
    blocks lie in the store. With statistics, each block is run twice on the inputs that the quantized blocks before it
    produced: once as it was, to see what enters its layers, and once quantized, for the next block.

    Several processes deal the samples out to each other, and the weights of a block; the first one trains and commits.
    The result has the same bytes as that of one process with as many threads.

    Args:
        source: The model.
        plan: Which quantizer works on which target.
        store: Where finished blocks and activations are kept.
        events: Observers.
        diagnose: Returns plugins' numbers about one quantized weight.
        seed: Decides the quantizers' random draws, together with each target's name.
        trainer: Trains each block after it was quantized; `None` trains nothing.
        ranks: The processes; each has an engine, and they see one and the same store.
        formats: Finds the class of a format by its name; needed by several processes.
    """

    source: BlockwiseModel
    plan: QuantizationPlan
    store: BlockStore
    events: RunEvents
    diagnose: Diagnose
    seed: int
    trainer: BlockTrainer | None = None
    ranks: Ranks = field(default_factory=OneRank)
    formats: Formats | None = None

    def run(self, tokens: Tensor | None) -> None:
        """Quantize every block that the store does not hold yet.

        Args:
            tokens: Calibration or training tokens int64 [samples, length]; needed if any quantizer needs statistics,
                or blocks are trained.

        Raises:
            LowbitError: A weight is not finite, or a quantizer breaks its contract.
        """
        blocks = len(self.plan.blocks)
        finished: int = self.ranks.gather(self.store.finished())[0]
        self.events.run_started(blocks, finished)
        if finished == blocks:
            return
        needed = self.plan.needs_statistics or self.trainer is not None
        samples = self._prepare_samples(tokens, finished) if needed else None
        for index in range(finished, blocks):
            self._advance(index, samples)

    def _advance(self, index: int, samples: _Samples | None) -> None:
        """Quantize a block, store it, and hold nothing of it when the next one is loaded."""
        block = self._quantize_block(index, samples)
        with agreed(self.ranks):
            if block is not None:
                self.store.commit(block)
        if block is not None:
            self.events.block_quantized(block, len(self.plan.blocks))
        del block
        release_freed_memory()

    def _prepare_samples(self, tokens: Tensor | None, finished: int) -> _Samples:
        """Record how the model calls its blocks, and store what enters the first one unless that is done."""
        if tokens is None:
            raise LowbitError("this method needs calibration data: give --calibration NAME or a file")
        own = own_samples(len(tokens), self.ranks.rank, self.ranks.size)
        stored: bool = self.ranks.gather(self.store.has_activations(finished))[0]
        with agreed(self.ranks):
            if stored:
                calls = self.source.calls(tokens, None)
            elif finished:
                raise LowbitError(f"the journal lacks the inputs of block {finished}; delete it and start again")
            else:
                with self.store.write_activations(0, part=own) as writer:
                    # Every process records its calls from the first sample, and stores what its own samples are.
                    sent = torch.cat([tokens[:1], tokens[own.start : own.stop]])
                    calls = self.source.calls(sent, _all_but_first(writer.append))
        return _Samples(calls, len(tokens), own)

    @torch.no_grad()
    def _quantize_block(self, index: int, samples: _Samples | None) -> QuantizedBlock | None:
        """Return the finished block in the main process, `None` in others."""
        started = time.monotonic()
        targets = [t for t in self.plan.blocks[index] if t.name in self.plan.quantizers]
        owners = assign_targets(targets, self.plan.quantizers, self.ranks.size)
        observer = BlockObserver(self.source.model, self.plan.needs(index))
        with ExitStack() as stack:
            with agreed(self.ranks):
                block = stack.enter_context(self.source.block(index))
            self._observe(index, block, samples, observer, owners)
            with agreed(self.ranks):
                own = [target for target in targets if owners[target.name] == self.ranks.rank]
                mine = self._quantize_targets(index, own, len(targets), observer)
            made = self._share(index, owners, mine)
            trained = self._train(index, block, samples, targets, made)
            weights = {name: one.quantized for name, one in made.items()} | dict(trained.weights)
            with agreed(self.ranks):
                # Only the main process knows which weights training left as they were.
                told = own if self.trainer is None else targets if self._leads else []
                reports = {t.name: self._report(t, made[t.name], weights[t.name], observer) for t in told}
            reports = {name: report for part in self.ranks.gather(reports) for name, report in part.items()}
            with agreed(self.ranks):
                untouched = self._finish(index, block, samples, targets, weights)
        if not self._leads:
            return None
        return QuantizedBlock(
            index,
            weights,
            frozenset(target.name for target in targets if target.expert is not None),
            untouched,
            tuple(reports[target.name] for target in targets),
            time.monotonic() - started,
            trained.state,
            trained.record or None,
        )

    @property
    def _leads(self) -> bool:
        """Whether this is the main process."""
        return self.ranks.rank == 0

    def _observe(
        self,
        index: int,
        block: nn.Module,
        samples: _Samples | None,
        observer: BlockObserver,
        readers: Mapping[str, int],
    ) -> None:
        """Run every sample through the unquantized block: the first one before all others, which learn from it."""
        if samples is None or observer.idle:
            return
        own = samples.own
        with agreed(self.ranks):
            self._watch(index, block, samples, observer, range(own.start, min(own.stop, 1)))
        observer.learn(self.ranks)
        with agreed(self.ranks):
            self._watch(index, block, samples, observer, range(max(own.start, 1), own.stop))
        observer.combine(self.ranks, readers)

    def _watch(self, index: int, block: nn.Module, samples: _Samples, observer: BlockObserver, part: range) -> None:
        for hidden in self.store.activations(index, part=part):
            with observer.watching():
                samples.calls[index].run(block, hidden)

    def _quantize_targets(
        self, index: int, own: Sequence[WeightTarget], layers: int, observer: BlockObserver
    ) -> dict[str, QuantizedTarget]:
        """Quantize this process's weights one after the other, and tell of each."""
        made: dict[str, QuantizedTarget] = {}
        for target in own:
            weight = read_weight(self.source.model, target).contiguous()
            quantizer = self.plan.quantizers[target.name]
            made[target.name] = quantize_target(target, weight, observer.statistics(target), quantizer, self.seed)
            self._tell(index, target.name, made[target.name].seconds, len(made), layers)
        release_freed_memory()
        return made

    def _share(
        self, index: int, owners: Mapping[str, int], mine: Mapping[str, QuantizedTarget]
    ) -> dict[str, QuantizedTarget]:
        """Bring every process's weights to all of them, and tell of those that others quantized."""
        shared = share_weights(self.ranks, {name: one.quantized for name, one in mine.items()}, owners, self.formats)
        about = self.ranks.gather({name: (one.notes, one.seconds) for name, one in mine.items()})
        made = {name: QuantizedTarget(shared[name], *about[owner][name]) for name, owner in owners.items()}
        for number, name in enumerate((name for name in owners if name not in mine), len(mine) + 1):
            self._tell(index, name, made[name].seconds, number, len(owners))
        return made

    def _tell(self, index: int, name: str, seconds: float, number: int, layers: int) -> None:
        if self._leads:
            self.events.layer_quantized(QuantizedLayer(name, index, number, layers, seconds))

    def _train(
        self,
        index: int,
        block: nn.Module,
        samples: _Samples | None,
        targets: Sequence[WeightTarget],
        made: Mapping[str, QuantizedTarget],
    ) -> TrainedBlock:
        """Train the block's quantized weights, if there is a trainer; the main process does so for all."""
        if self.trainer is None or samples is None:
            return TrainedBlock({}, {}, {})
        call = samples.calls[index]
        stream: Stream = "reference" if self.trainer.reference == "parent" and index > 0 else "quantized"
        with agreed(self.ranks), self.store.write_activations(index + 1, "reference", samples.own) as writer:
            for hidden in self.store.activations(index, stream, samples.own):
                writer.append(call.run(block, hidden))
        trained = TrainedBlock({}, {}, {})
        with agreed(self.ranks):
            if self._leads:
                weights = [TrainableWeight(t, self.plan.quantizers[t.name], made[t.name].quantized) for t in targets]
                trained = self.trainer.train(
                    BlockTask(
                        index,
                        self.source.model,
                        block,
                        weights,
                        run=lambda hidden: call.run(block, hidden),
                        samples=samples.number,
                        inputs=lambda positions: self.store.batch(index, positions),
                        outputs=lambda positions: self.store.batch(index + 1, positions, "reference"),
                    )
                )
        from_main = dict.fromkeys(self.ranks.gather(list(trained.weights))[0], 0)
        return replace(trained, weights=share_weights(self.ranks, trained.weights, from_main, self.formats))

    def _report(
        self, target: WeightTarget, made: QuantizedTarget, final: QuantizedWeight, observer: BlockObserver
    ) -> LayerReport:
        weight = read_weight(self.source.model, target)
        tokens = counted_tokens(self.plan.quantizers[target.name], observer.tokens(target))
        return report_target(target, weight, made, final, tokens, self.diagnose)

    def _finish(
        self,
        index: int,
        block: nn.Module,
        samples: _Samples | None,
        targets: Sequence[WeightTarget],
        weights: Mapping[str, QuantizedWeight],
    ) -> dict[str, Tensor]:
        """Store what the quantized block makes of its inputs, and return its other tensors."""
        release_freed_memory()
        if samples is not None:
            for target in targets:
                write_weight(self.source.model, target, weights[target.name].dequantize())
        untouched = self.source.untouched(index, [target.parameter_name for target in targets])
        for name, tensor in untouched.items():
            require_finite(tensor, name)
        if samples is not None and index + 1 < len(self.plan.blocks):
            with self.store.write_activations(index + 1, part=samples.own) as writer:
                for hidden in self.store.activations(index, part=samples.own):
                    writer.append(samples.calls[index].run(block, hidden))
        return untouched


def _all_but_first(take: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Return what passes on every tensor that it is given but the first."""
    given = iter([False])

    def pass_on(hidden: Tensor) -> None:
        if next(given, True):
            take(hidden)

    return pass_on
