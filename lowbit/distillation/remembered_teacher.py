"""A teacher that remembers what it made of each sequence, for trainings that see every sequence several times."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.distillation.student import Body

FLOAT_BYTES = 4


class RememberedTeacher:
    """Runs a frozen body once a sequence and keeps what enters the output layer.

    A sequence always runs alone, so that its hidden states do not depend on those beside it in a batch: a continued
    training must meet the same ones.

    Args:
        body: The teacher.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._known: dict[bytes, Tensor] = {}

    def __call__(self, tokens: Tensor, with_hidden: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what the body returns; the outputs of its blocks are not kept."""
        if with_hidden:
            return self._body(tokens, with_hidden)  # type: ignore[no-any-return]
        return torch.cat([self._one(sequence) for sequence in tokens.split(1)]), ()

    def _one(self, sequence: Tensor) -> Tensor:
        key = sequence.cpu().numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._body(sequence)[0]
        return self._known[key]


def remembered_bytes(tokens: Tensor, hidden_size: int) -> int:
    """Return how much memory it takes to remember sequences [samples, length]."""
    return tokens.numel() * hidden_size * FLOAT_BYTES
