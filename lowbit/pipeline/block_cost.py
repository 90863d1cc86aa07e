"""What a decoder block costs a sequence, from timing one of random numbers in its shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.calibration import BlockObserver
from lowbit.calibration.accumulator import InputAccumulator
from lowbit.contracts import StatisticsNeed
from lowbit.models import WeightTarget
from lowbit.models.capture import BlockCall
from lowbit.pipeline.measuring import Stopwatch, peak_bytes_of
from lowbit.pipeline.trial_model import TrialModel
from lowbit.quantization.plan import QuantizationPlan

FIRST_TOKENS = 64


@dataclass(frozen=True)
class BlockCost:
    """What one block costs.

    Args:
        observe_seconds: A sequence, run to learn what enters the layers, statistics included.
        forward_seconds: A sequence, run through the block.
        finish_seconds: Turning sums into statistics, once a block.
        peak_bytes: Working memory of a sequence beside block and statistics.
        leaders: The targets whose statistics are summed; others are given the same inputs.
        tokens: Tokens that were timed; longer sequences are extrapolated by their operations.
    """

    observe_seconds: float
    forward_seconds: float
    finish_seconds: float
    peak_bytes: float
    leaders: tuple[WeightTarget, ...]
    tokens: int


def block_kinds(plan: QuantizationPlan) -> dict[int, list[int]]:
    """Return the blocks that have targets of the same shapes and quantizers, by the first of them."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for index, targets in enumerate(plan.blocks):
        key = tuple((t.out_features, t.in_features, t.expert, id(plan.quantizers.get(t.name))) for t in targets)
        kinds.setdefault(key, []).append(index)
    return {indices[0]: indices for indices in kinds.values()}


@dataclass(frozen=True)
class BlockTrial:
    """Times one block.

    Args:
        model: Holds the block.
        plan: What its layers' quantizers need.
        index: Which block.
        length: Tokens of a sequence.
        watch: Times.
        budget: Seconds for timing.
    """

    model: TrialModel
    plan: QuantizationPlan
    index: int
    length: int
    watch: Stopwatch
    budget: float

    def measure(self) -> BlockCost:
        """Run random hidden states through the block, as many tokens as time allows."""
        block = self.model.decoder.blocks[self.index]
        first = min(self.length, FIRST_TOKENS)
        call, hidden = self._inputs(first)
        self._forward(call, block, hidden)
        pace = self.watch.once(lambda: self._forward(call, block, hidden)) / self._operations(first)
        tokens = affordable_tokens(self.length, lambda n: pace * self._operations(n) * 4, self.budget)
        call, hidden = self._inputs(tokens)
        peak = peak_bytes_of(lambda: self._forward(call, block, hidden), self.watch.device)
        forward = self.watch.typical(lambda: self._forward(call, block, hidden))
        observer = BlockObserver(self.model.model, self.plan.needs(self.index))
        observe = finish = 0.0
        leaders: tuple[WeightTarget, ...] = ()
        if not observer.idle:
            # The first sequence is run to its end, since nobody knows yet which layer is the last to be observed.
            self._observe(observer, call, block, hidden)
            observe = self.watch.typical(lambda: self._observe(observer, call, block, hidden))
            finish = self.watch.once(lambda: [observer.statistics(target) for target, _ in self.plan.needs(self.index)])
            leaders = self._leaders(observer)
        grown = self._operations(self.length) / self._operations(tokens)
        return BlockCost(observe * grown, forward * grown, finish, peak * self.length / tokens, leaders, tokens)

    def _operations(self, tokens: int) -> float:
        """Return a number that grows as the arithmetic of a sequence: products with weights, and attention."""
        targets = self.plan.blocks[self.index]
        weights = sum(target.weights for target in targets)
        return float(tokens * weights + 2 * tokens**2 * self.model.config.hidden_size)

    def _inputs(self, tokens: int) -> tuple[BlockCall, Tensor]:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.model.config.vocab_size, (1, tokens), generator=generator)
        call = self.model.calls(ids, None)[self.index]
        hidden = torch.randn(1, tokens, self.model.config.hidden_size, generator=generator)
        return call, hidden.to(self.watch.device)

    @torch.no_grad()
    def _forward(self, call: BlockCall, block: nn.Module, hidden: Tensor) -> None:
        call.run(block, hidden)

    @torch.no_grad()
    def _observe(self, observer: BlockObserver, call: BlockCall, block: nn.Module, hidden: Tensor) -> None:
        with observer.watching():
            call.run(block, hidden)

    def _leaders(self, observer: BlockObserver) -> tuple[WeightTarget, ...]:
        """Return the targets that were given statistics of their own, the first of each group that shares them."""
        found = {id(observer.statistics(target)): target for target, _ in reversed(self.plan.needs(self.index))}
        return tuple(reversed(found.values()))


def affordable_tokens(most: int, seconds: Callable[[int], float], budget: float) -> int:
    """Return how many tokens fit a budget: all, or a power of two of them that does.

    Args:
        most: The largest number wanted.
        seconds: Returns what a number of tokens will take.
        budget: Seconds.
    """
    tokens = most
    while tokens > FIRST_TOKENS and seconds(tokens) > budget:
        tokens = 1 << ((tokens - 1).bit_length() - 1)
    return tokens


def statistics_bytes(plan: QuantizationPlan, leaders: Sequence[WeightTarget]) -> int:
    """Return the bytes of a block's statistics: sums, or what becomes of them, whichever are more."""
    return sum(_statistics_bytes(plan.quantizers[target.name].needs, target.in_features) for target in leaders)


def _statistics_bytes(need: StatisticsNeed, columns: int) -> int:
    sums = InputAccumulator(need)
    sums.start(columns, torch.device("meta"))
    finished = columns * (columns if need is StatisticsNeed.HESSIAN else 1) * torch.float32.itemsize
    return max(sum(tensor.nbytes for tensor in sums.sums), finished)
