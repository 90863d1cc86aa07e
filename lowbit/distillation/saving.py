"""When a training is saved, and what of its optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.distillation.sharding import as_split_as

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class SaveTimer:
    """Says when a checkpoint is due by the clock.

    Args:
        minutes: Between two checkpoints.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Say whether the last checkpoint, or the start, is long enough ago."""
        return time.monotonic() - self._saved >= self._seconds

    def saved(self) -> None:
        """Take note of a checkpoint."""
        self._saved = time.monotonic()


def moments(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
    """Yield the optimizer's running means by `<name>.<moment>`."""
    for name, parameter in trained.items():
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        yield from ((f"{name}.{moment}", state[moment]) for moment in MOMENTS if moment in state)


def put_moments_back(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer the running means that were saved by `<name>.<moment>`."""
    for name, parameter in trained.items():
        found = {moment: tensors[f"{name}.{moment}"] for moment in MOMENTS if f"{name}.{moment}" in tensors}
        if found:
            optimizer.state[parameter] = {
                moment: tensor if moment == "step" else as_split_as(tensor, parameter.detach())
                for moment, tensor in found.items()
            }
