"""Checkpoints within the reconstruction of one block."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowbit import preemption
from lowbit.distillation.parametrized import ParametrizedWeights
from lowbit.distillation.saving import SaveTimer, moments, put_moments_back
from lowbit.distillation.training_store import TrainingStore


class BlockCheckpoint:
    """Keeps a block's training in a store, by the clock and when the process shall end.

    Args:
        store: Where it is kept; `None` keeps nothing.
        block: The block's position; what is stored of another one is not read.
        weights: What is trained.
        optimizer: Its moments are kept, too.
        minutes: Between two checkpoints.
    """

    def __init__(
        self,
        store: TrainingStore | None,
        block: int,
        weights: ParametrizedWeights,
        optimizer: torch.optim.Optimizer,
        minutes: float,
    ) -> None:
        self._store = store
        self._block = block
        self._weights = weights
        self._optimizer = optimizer
        self._timer = SaveTimer(minutes)

    def resume(self) -> list[float]:
        """Put the last checkpoint of this block back, if there is one, and return the losses of its steps.

        Raises:
            LowbitError: The checkpoint is damaged.
        """
        record = None if self._store is None else self._store.record()
        if self._store is None or record is None or record.get("block") != self._block:
            return []
        tensors = self._store.tensors(record["step"])
        self._weights.load(tensors)
        put_moments_back(self._optimizer, self._weights.trained(), tensors)
        return [float(loss) for loss in record["losses"]]

    def keep(self, losses: Sequence[float]) -> None:
        """Store a checkpoint if one is due.

        Args:
            losses: Of the steps so far.
        """
        if self._store is None or not (preemption.requested() or self._timer.due()):
            return
        means = {name: tensor.detach().cpu() for name, tensor in moments(self._optimizer, self._weights.trained())}
        record = {"block": self._block, "losses": list(losses)}
        self._store.save(len(losses), {**self._weights.state(), **means}, record)
        self._timer.saved()
