"""Gradients of distillation losses, compared with differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lowbit.contracts import DistillationBatch, DistillationLoss
from lowbit.testing.batches import random_batch, terms_of


def gradient_fault(loss: DistillationLoss) -> str:
    """Say where a loss's gradients disagree with differences of its values; empty if nowhere."""
    batch = random_batch(3, 5, 4, 2)
    count = len(terms_of(loss, batch))
    for number in range(count):
        inputs = (batch.student_logits, *batch.student_hidden)
        value = terms_of(loss, batch)[number].value
        used: tuple[Tensor | None, ...] = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        for position, gradient in enumerate(used):
            if gradient is None:
                continue
            where = "student_logits" if position == 0 else f"student_hidden[{position - 1}]"
            try:
                torch.autograd.gradcheck(_function(loss, batch, number, position), (inputs[position],))
            except (RuntimeError, ValueError) as error:
                return f"in term {number}, {where}: {' '.join(str(error).split())[:400]}"
    return ""


def _function(loss: DistillationLoss, batch: DistillationBatch, term: int, position: int) -> Callable[[Tensor], Tensor]:
    """Return the values of a term as a function of the logits (position 0) or of a block's hidden state."""

    def values(tensor: Tensor) -> Tensor:
        if position == 0:
            changed = replace(batch, student_logits=tensor)
        else:
            hidden = list(batch.student_hidden)
            hidden[position - 1] = tensor
            changed = replace(batch, student_hidden=tuple(hidden))
        return terms_of(loss, changed)[term].value

    return values
