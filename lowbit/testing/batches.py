"""Random tokens for distillation losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lowbit.contracts import DistillationBatch, DistillationLoss, TokenLoss


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


def terms_of(loss: DistillationLoss, batch: DistillationBatch) -> list[TokenLoss]:
    """Return the terms of a loss, one or several."""
    terms = loss(batch)
    return list(terms) if isinstance(terms, Sequence) else [terms]


def tensors_of(batch: DistillationBatch) -> list[Tensor]:
    """Return every tensor of a batch."""
    return [batch.student_logits, batch.teacher_logits, batch.labels, *batch.student_hidden, *batch.teacher_hidden]
