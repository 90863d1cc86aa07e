"""Streaming statistics of what enters each weight target: running sums, no stored activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.contracts import LayerStatistics, StatisticsNeed
from lowbit.models import WeightTarget
from lowbit.models.experts import ExpertObserver

Observer = Callable[[Tensor], None]

STRIP_ROWS = 128


@dataclass
class InputAccumulator:
    """Running sums over the tokens that entered a layer.

    A Hessian is kept as a running mean over samples, in the order of operations of GPTQ's code, so that the sum does
    not lose digits as it grows and its rounding errors are that code's.

    Args:
        need: Whether the full second-moment matrix is summed or only its diagonal.
        tokens: Tokens seen so far.
        unit: Tokens of the first sample, by which the running mean counts.
        total: 2 * X^T X * unit / tokens, float32 [in, in], its upper part, or sum of x^2, float32 [in]; `None` before
            the first token.
    """

    need: StatisticsNeed
    tokens: int = 0
    unit: int = 0
    total: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add inputs [..., in]."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()  # [tokens, in]
        if not len(rows):
            return
        if self.need is StatisticsNeed.HESSIAN:
            self._add_products(rows)
        else:
            squares = rows.square().sum(0)
            self.total = squares if self.total is None else self.total.add_(squares)
        self.tokens += len(rows)

    def _add_products(self, rows: Tensor) -> None:
        if self.total is None:
            self.total = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
            self.unit = len(rows)
        tokens = self.tokens + len(rows)
        kept = self.tokens / tokens
        scaled = rows * math.sqrt(2 / (tokens / self.unit))
        for strip in _strips(rows.shape[1]):
            self.total[strip, strip.start :].mul_(kept).add_(scaled[:, strip].T @ scaled[:, strip.start :])

    def finish(self) -> LayerStatistics | None:
        """Turn the sums into statistics, in place, or return `None` if no token was seen."""
        if self.total is None:
            return None
        if self.need is StatisticsNeed.HESSIAN:
            for strip in _strips(self.total.shape[0]):
                self.total[strip.stop :, strip] = self.total[strip, strip.stop :].T
            hessian = self.total.div_(self.unit)
            return LayerStatistics(self.tokens, hessian.diagonal() / 2, hessian)
        return LayerStatistics(self.tokens, self.total.div_(self.tokens))


def _strips(columns: int) -> Iterator[slice]:
    """Yield strips of rows of a symmetric matrix; only what lies from their first column on is summed."""
    for start in range(0, columns, STRIP_ROWS):
        yield slice(start, min(start + STRIP_ROWS, columns))


class EverythingSeenError(Exception):
    """The rest of a block's forward pass would show no target anything new."""


class BlockObserver:
    """Collects the statistics of the targets of one block while samples run through it.

    Layers that are given the same tensor (query, key and value; gate and up) share one accumulator. Which layers these
    are is learned from the first sample, and also how often each layer is called: later samples end, by
    `EverythingSeenError`, when the last call was observed, since nobody needs the block's output.

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
        self._calls: int | None = None

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
                handles.append(module.register_forward_pre_hook(_first_argument(observe, observed)))
            else:
                experts.setdefault(module, {})[target.parameter, target.expert] = observe
        for module, observers in experts.items():
            module.__dict__["lowbit_observer"] = _dispatch(observers)
        try:
            with suppress(EverythingSeenError):
                yield
            self._calls = observed.number
        finally:
            for handle in handles:
                handle.remove()
            for module in experts:
                del module.__dict__["lowbit_observer"]

    def statistics(self, target: WeightTarget) -> LayerStatistics | None:
        """Return what was collected for a target; `None` if no token reached it or it needs none."""
        leader = self._leaders.get(target.name)
        if leader is None:
            return None
        if leader not in self._finished:
            self._finished[leader] = self._accumulators[leader].finish()
        return self._finished[leader]

    def _observer(
        self, target: WeightTarget, need: StatisticsNeed, seen: dict[tuple[int, StatisticsNeed], tuple[str, Tensor]]
    ) -> Observer:
        def observe(x: Tensor) -> None:
            name = target.name
            if name not in self._leaders:
                # Holding the tensor keeps its id from being reused within the sample.
                self._leaders[name] = seen.setdefault((id(x), need), (name, x))[0]
                if self._leaders[name] == name:
                    self._accumulators[name] = InputAccumulator(need)
            if self._leaders[name] == name:
                self._accumulators[name].add(x)

        return observe


@dataclass
class _Calls:
    """Counts the calls of observed layers in one sample and ends it after the last.

    Args:
        expected: Calls of a sample, as far as they are known.
        number: Calls so far.
    """

    expected: int | None
    number: int = 0

    def count(self) -> None:
        self.number += 1
        if self.number == self.expected:
            raise EverythingSeenError


def _first_argument(observe: Observer, calls: _Calls) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        observe(args[0])
        calls.count()

    return hook


def _dispatch(observers: Mapping[tuple[str, int], Observer]) -> ExpertObserver:
    def observe(parameter: str, expert: int, x: Tensor) -> None:
        if (parameter, expert) in observers:
            observers[parameter, expert](x)

    return observe
