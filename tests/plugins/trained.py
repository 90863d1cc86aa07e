"""One matrix in training, by any quantizer that offers it."""

from __future__ import annotations

from typing import Any

import torch
from plugins.matrices import assert_packs
from torch import Tensor

from lowbit.registry import registry
from lowbit.testing import Training, start_training

__all__ = ["Training", "assert_freezes_to_its_output", "in_training", "walk"]


def in_training(name: str, weight: Tensor, **options: Any) -> Training:
    return start_training(registry().quantizer(name), weight, options)


def walk(training: Training, rate: float, steps: int = 5) -> None:
    """Take optimizer steps along random gradients."""
    training.walk(rate, steps)


def assert_freezes_to_its_output(training: Training) -> None:
    output, frozen = training.output(), training.frozen()
    assert output.dtype == torch.float32
    assert output.shape == training.latent.shape
    assert bool(torch.isfinite(output).all())
    assert type(frozen).format in registry().table("format")
    assert torch.equal(frozen.dequantize(), output.detach())
    assert_packs(frozen)
