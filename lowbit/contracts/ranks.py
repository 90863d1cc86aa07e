"""The protocol through which a room is given the processes that share a run's work."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import Tensor


class Ranks(Protocol):
    """The processes of a run, numbered from 0, the main one; all of them call the methods, and in the same order."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    @property
    def device(self) -> torch.device:
        """Where a tensor lies that is about to be sent or received."""

    def gather(self, value: Any) -> list[Any]:
        """Return every process's plain value, by rank."""

    def sum(self, tensor: Tensor, to: Collection[int]) -> None:
        """Add up a tensor of the same shape from every process, in place, for the ranks named; others' is spoiled."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy one process's tensor into every other's, in place; it lies on `device`."""
