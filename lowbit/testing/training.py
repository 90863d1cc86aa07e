"""One matrix in training, by a quantizer that offers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.contracts import Parametrization, QuantizedWeight, WeightQuantizer
from lowbit.testing.matrices import statistics_for
from lowbit.testing.quantizing import make_quantizer


@dataclass
class Training:
    """Where training started, the latent weight and its parametrization."""

    quantizer: WeightQuantizer
    start: QuantizedWeight
    latent: nn.Parameter
    parametrization: Parametrization

    def output(self) -> Tensor:
        """Return the fake-quantized weight, float32 [out, in]."""
        dense: Tensor = self.parametrization(self.latent)
        return dense

    def frozen(self) -> QuantizedWeight:
        """Return the quantized weight that the training stands at."""
        return self.quantizer.freeze(self.latent.detach(), self.parametrization)

    def trained(self) -> list[nn.Parameter]:
        """Return everything that an optimizer moves."""
        own = list(self.parametrization.parameters())
        return [self.latent, *own] if self.parametrization.trains_latent_weight else own

    def walk(self, rate: float, steps: int = 5) -> None:
        """Take optimizer steps along random gradients."""
        generator = torch.Generator().manual_seed(7)
        optimizer = torch.optim.AdamW(self.trained(), lr=rate, weight_decay=0)
        for _ in range(steps):
            for parameter in self.trained():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            self.parametrization.project()
        optimizer.zero_grad()


def start_training(quantizer: type[WeightQuantizer], weight: Tensor, options: Mapping[str, Any]) -> Training:
    """Quantize a matrix and make it trainable."""
    made = make_quantizer(quantizer, **options)
    statistics = statistics_for(made.needs, weight.shape[1])
    start = made.quantize(weight, statistics, torch.Generator().manual_seed(0))
    return Training(made, start, nn.Parameter(weight.clone()), made.parametrize(weight, start))
