"""Quantizing one matrix with a registered quantizer."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from lowbit import LayerStatistics, QuantizedWeight, StatisticsNeed
from lowbit.recipe import build_quantizer
from lowbit.registry import registry


class Quantize(Protocol):
    def __call__(self, quantizer: str, weight: Tensor, seed: int = 0, **options: Any) -> QuantizedWeight: ...


def statistics_for(need: StatisticsNeed, columns: int) -> LayerStatistics | None:
    """Statistics of 256 correlated Gaussian tokens, as far as they are asked for."""
    if need is StatisticsNeed.NONE:
        return None
    generator = torch.Generator().manual_seed(99)
    mixing = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    tokens = torch.randn(256, columns, generator=generator) @ mixing
    second_moment = tokens.square().mean(0)
    hessian = 2 * tokens.T @ tokens / len(tokens) if need is StatisticsNeed.HESSIAN else None
    return LayerStatistics(len(tokens), second_moment, hessian)


@pytest.fixture(scope="session")
def quantize() -> Quantize:
    """Quantize a matrix by the quantizer's registered name and its options."""

    def run(quantizer: str, weight: Tensor, seed: int = 0, **options: Any) -> QuantizedWeight:
        made = build_quantizer(registry(), {"name": quantizer, **options})
        statistics = statistics_for(made.needs, weight.shape[1])
        return made.quantize(weight, statistics, torch.Generator().manual_seed(seed))

    return run
