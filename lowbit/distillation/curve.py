"""The learning curve of a training, and what decides when it has learned enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Curve:
    """Losses so far.

    Args:
        losses: Of each step's batch.
        held_out: Step and held-out loss of each look.
    """

    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)

    def look(self, step: int, loss: float) -> bool:
        """Add a held-out loss, and say whether it is the lowest so far."""
        lowest = min((known for _, known in self.held_out), default=math.inf)
        self.held_out.append((step, loss))
        return loss < lowest or len(self.held_out) == 1

    @property
    def best_step(self) -> int:
        """The step after which the held-out loss was lowest."""
        return min(self.held_out, key=lambda look: look[1])[0]

    @property
    def best_loss(self) -> float:
        """The lowest held-out loss."""
        return min(loss for _, loss in self.held_out)

    def exhausted(self, patience: int | None) -> bool:
        """Say whether the last `patience` looks were all worse than one before."""
        if patience is None:
            return False
        best = min(range(len(self.held_out)), key=lambda position: self.held_out[position][1])
        return len(self.held_out) - 1 - best >= patience

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "losses": list(self.losses),
            "held_out": [list(look) for look in self.held_out],
            "best_step": self.best_step,
            "best_loss": self.best_loss,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Curve:
        """Read back what `to_dict` returned."""
        return cls(list(record["losses"]), [(int(step), float(loss)) for step, loss in record["held_out"]])
