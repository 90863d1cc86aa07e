"""Streaming statistics of what enters each weight target: running sums, no stored activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.calibration.accumulator import InputAccumulator, column_exponents
from lowbit.contracts import LayerStatistics, Ranks, StatisticsNeed
from lowbit.models import WeightTarget
from lowbit.models.experts import ExpertObserver

Observer = Callable[[Tensor], None]


class EverythingSeenError(Exception):
    """The rest of a block's forward pass would show no target anything new."""


class BlockObserver:
    """Collects the statistics of the targets of one block while samples run through it.

    Layers that are given the same tensor (query, key and value; gate and up) share one accumulator. Which layers these
    are is learned from the first sample, and also how often each layer is called: later samples end, by
    `EverythingSeenError`, when the last call was observed, since nobody needs the block's output. Of several processes
    each observes samples of its own, and `combine` adds up what they saw.

    Args:
        model: The model whose block runs.
        needs: The targets to observe and what each needs.
    """

    def __init__(self, model: nn.Module, needs: Sequence[tuple[WeightTarget, StatisticsNeed]]) -> None:
        self._model = model
        self._needs = [(target, need) for target, need in needs if need is not StatisticsNeed.NONE]
        self._accumulators: dict[str, InputAccumulator] = {}
        self._leaders: dict[str, str] = {}
        self._finished: dict[str, LayerStatistics | None] = {}
        self._tokens: dict[str, int] = {}
        self._calls: int | None = None
        self._learned = False

    @property
    def idle(self) -> bool:
        """Whether no target needs statistics."""
        return not self._needs

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe one sample that runs through the block inside this context."""
        seen: dict[tuple[int, StatisticsNeed], tuple[str, Tensor]] = {}
        handles = []
        observed = _Calls(None if any(target.expert is not None for target, _ in self._needs) else self._calls)
        experts: dict[nn.Module, dict[tuple[str, int], Observer]] = {}
        for target, need in self._needs:
            observe = self._observer(target, need, seen)
            module = self._model.get_submodule(target.module)
            if target.expert is None:
                handles.append(module.register_forward_pre_hook(_first_argument(observe, observed, target.name)))
            else:
                experts.setdefault(module, {})[target.parameter, target.expert] = observe
        for module, observers in experts.items():
            module.__dict__["lowbit_observer"] = _dispatch(observers)
        try:
            with suppress(EverythingSeenError):
                yield
            # Where one sample calls other layers than the next, as experts do, nobody knows which call is the last.
            self._calls = observed.number if len(observed.names) == len(self._needs) else None
            self._learned = True
        finally:
            for handle in handles:
                handle.remove()
            for module in experts:
                del module.__dict__["lowbit_observer"]

    def learn(self, ranks: Ranks) -> None:
        """Tell every process what the main one learned from the first sample, before they observe all others."""
        if ranks.size == 1:
            return
        kept = {name: found.exponents for name, found in self._accumulators.items()}
        told = {name: None if found is None else found.tolist() for name, found in kept.items()}
        self._leaders, exponents = ranks.gather((self._leaders, told))[0]
        for target, need in self._needs:
            if exponents.get(target.name) is not None and target.name not in self._accumulators:
                found = torch.tensor(exponents[target.name], dtype=torch.int32)
                self._accumulators[target.name] = InputAccumulator(need, found)
        self._learned = True

    def combine(self, ranks: Ranks, readers: Mapping[str, int]) -> None:
        """Add up what several processes saw, each of some samples; every one of them calls this, after its own.

        Args:
            ranks: The processes.
            readers: By target name, the rank that will ask for its statistics; nobody else can.
        """
        if ranks.size == 1:
            return
        seen = {name: accumulator.tokens for name, accumulator in self._accumulators.items()}
        leaders: dict[str, str] = {}
        for found, tokens in ranks.gather((self._leaders, seen)):
            # Whoever comes first ran the earlier samples, and has learned what a single process would have.
            leaders = {**found, **leaders}
            self._tokens.update({name: self._tokens.get(name, 0) + number for name, number in tokens.items()})
        self._leaders = leaders
        for target, need in self._needs:
            if leaders.get(target.name) == target.name:
                to = {readers[name] for name, leader in leaders.items() if leader == target.name}
                self._add_up(target, need, ranks, to)

    def _add_up(self, target: WeightTarget, need: StatisticsNeed, ranks: Ranks, to: set[int]) -> None:
        """Give the sums of all processes to those that will read them; the others forget theirs."""
        own = self._accumulators.pop(target.name, None) or InputAccumulator(need)
        if not own.sums:
            own.start(target.in_features, self._device_of(target))
        for total in own.sums:
            ranks.sum(total, to)
        own.tokens = self._tokens[target.name]
        if ranks.rank in to:
            self._accumulators[target.name] = own

    def tokens(self, target: WeightTarget) -> int:
        """Return how many tokens reached a target, in all processes."""
        leader = self._leaders.get(target.name, "")
        if leader in self._tokens:
            return self._tokens[leader]
        return self._accumulators[leader].tokens if leader in self._accumulators else 0

    def statistics(self, target: WeightTarget) -> LayerStatistics | None:
        """Return what was collected for a target; `None` if no token reached it or it needs none."""
        leader = self._leaders.get(target.name)
        if leader is None:
            return None
        if leader not in self._finished:
            self._finished[leader] = self._accumulators[leader].finish(self._device_of(target))
        return self._finished[leader]

    def _device_of(self, target: WeightTarget) -> torch.device:
        device: torch.device = getattr(self._model.get_submodule(target.module), target.parameter).device
        return device

    def _observer(
        self, target: WeightTarget, need: StatisticsNeed, seen: dict[tuple[int, StatisticsNeed], tuple[str, Tensor]]
    ) -> Observer:
        def observe(x: Tensor) -> None:
            name = target.name
            if name not in self._leaders:
                # Holding the tensor keeps its id from being reused within the sample.
                self._leaders[name] = seen.setdefault((id(x), need), (name, x))[0]
                if self._leaders[name] == name:
                    exponents = None if self._learned else column_exponents(x)
                    self._accumulators[name] = InputAccumulator(need, exponents)
            if self._leaders[name] == name:
                self._accumulators[name].add(x)

        return observe


@dataclass
class _Calls:
    """Counts the calls of observed layers in one sample and ends it after the last.

    Args:
        expected: Calls of a sample, as far as they are known.
        number: Calls so far.
        names: What was called.
    """

    expected: int | None
    number: int = 0
    names: set[str] = field(default_factory=set)

    def count(self, name: str) -> None:
        self.number += 1
        self.names.add(name)
        if self.number == self.expected:
            raise EverythingSeenError


def _first_argument(observe: Observer, calls: _Calls, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        observe(args[0])
        calls.count(name)

    return hook


def _dispatch(observers: Mapping[tuple[str, int], Observer]) -> ExpertObserver:
    def observe(parameter: str, expert: int, x: Tensor) -> None:
        if (parameter, expert) in observers:
            observers[parameter, expert](x)

    return observe
