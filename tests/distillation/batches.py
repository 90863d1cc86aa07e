"""Random tokens for losses, and losses by their registered names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowbit import DistillationBatch, DistillationLoss
from lowbit.registry import registry


def loss_named(name: str, **options: Any) -> DistillationLoss:
    """Make a registered loss with some of its options."""
    loss = registry().distillation_loss(name)
    return loss(loss.Config(**options))


def random_batch(
    tokens: int = 7,
    vocabulary: int = 11,
    hidden: int = 5,
    blocks: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> DistillationBatch:
    """Make a batch in which student and teacher differ; the student's tensors are leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    teacher, teacher_hidden = 3 * normal(tokens, vocabulary), [normal(tokens, hidden) for _ in range(blocks)]
    return DistillationBatch(
        (teacher + normal(tokens, vocabulary)).requires_grad_(),
        teacher,
        torch.randint(vocabulary, (tokens,), generator=generator),
        tuple((state + 0.3 * normal(tokens, hidden)).requires_grad_() for state in teacher_hidden),
        tuple(teacher_hidden),
    )


def agreeing(batch: DistillationBatch) -> DistillationBatch:
    """Return the batch of a student that does exactly what the teacher does."""
    hidden = tuple(state.clone().requires_grad_() for state in batch.teacher_hidden)
    return replace(batch, student_logits=batch.teacher_logits.clone().requires_grad_(), student_hidden=hidden)
