"""Quantizing one matrix with a registered quantizer."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from lowbit import QuantizedWeight
from lowbit.recipe import build_quantizer
from lowbit.registry import registry
from lowbit.testing import statistics_for


class Quantize(Protocol):
    def __call__(self, quantizer: str, weight: Tensor, seed: int = 0, **options: Any) -> QuantizedWeight: ...


@pytest.fixture(scope="session")
def quantize() -> Quantize:
    """Quantize a matrix by the quantizer's registered name and its options."""

    def run(quantizer: str, weight: Tensor, seed: int = 0, **options: Any) -> QuantizedWeight:
        made = build_quantizer(registry(), {"name": quantizer, **options})
        statistics = statistics_for(made.needs, weight.shape[1])
        return made.quantize(weight, statistics, torch.Generator().manual_seed(seed))

    return run
