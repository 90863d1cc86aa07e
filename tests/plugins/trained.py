"""One matrix in training, by any quantizer that offers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from plugins.matrices import assert_packs
from quantization.layers import statistics_for
from torch import Tensor, nn

from lowbit import Parametrization, QuantizedWeight, WeightQuantizer
from lowbit.recipe import build_quantizer
from lowbit.registry import registry


@dataclass
class Training:
    """One matrix in training: where it started, its latent weight and its parametrization."""

    quantizer: WeightQuantizer
    start: QuantizedWeight
    latent: nn.Parameter
    parametrization: Parametrization

    def output(self) -> Tensor:
        dense: Tensor = self.parametrization(self.latent)
        return dense

    def frozen(self) -> QuantizedWeight:
        return self.quantizer.freeze(self.latent.detach(), self.parametrization)

    def trained(self) -> list[nn.Parameter]:
        own = list(self.parametrization.parameters())
        return [self.latent, *own] if self.parametrization.trains_latent_weight else own


def in_training(name: str, weight: Tensor, **options: Any) -> Training:
    quantizer = build_quantizer(registry(), {"name": name, **options})
    statistics = statistics_for(quantizer.needs, weight.shape[1])
    start = quantizer.quantize(weight, statistics, torch.Generator().manual_seed(0))
    return Training(quantizer, start, nn.Parameter(weight.clone()), quantizer.parametrize(weight, start))


def walk(training: Training, rate: float, steps: int = 5) -> None:
    """Take optimizer steps along random gradients."""
    generator = torch.Generator().manual_seed(7)
    optimizer = torch.optim.AdamW(training.trained(), lr=rate, weight_decay=0)
    for _ in range(steps):
        for parameter in training.trained():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        training.parametrization.project()
    optimizer.zero_grad()


def assert_freezes_to_its_output(training: Training) -> None:
    output, frozen = training.output(), training.frozen()
    assert output.dtype == torch.float32
    assert output.shape == training.latent.shape
    assert bool(torch.isfinite(output).all())
    assert type(frozen).format in registry().table("format")
    assert torch.equal(frozen.dequantize(), output.detach())
    assert_packs(frozen)
