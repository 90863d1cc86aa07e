"""A distillation loss of its own: the generalized Jensen-Shannon divergence."""

from math import log
from typing import ClassVar

import torch
from lowbit import DistillationBatch, DistillationLoss, TokenLoss
from pydantic import BaseModel, Field


class JensenShannon(DistillationLoss):
    """b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q, p the teacher and q the student (arXiv 2306.13649).

    Unlike the Kullback-Leibler divergence it is bounded, so that single tokens on which a weak student is
    hopelessly wrong do not rule the gradient.
    """

    name: ClassVar[str] = "jsd"

    class Config(BaseModel):
        """Options of the Jensen-Shannon divergence."""

        teacher_share: float = Field(0.5, gt=0, lt=1, description="b, the teacher's share of the mixture")

    def __call__(self, batch: DistillationBatch) -> TokenLoss:
        """Return the divergence of each token, in nats."""
        share = self.config.teacher_share
        teacher = batch.teacher_logits.log_softmax(-1)  # [tokens, vocabulary]
        student = batch.student_logits.log_softmax(-1)  # [tokens, vocabulary]
        mixture = torch.logaddexp(teacher + log(share), student + log(1 - share))
        to_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)  # [tokens]
        to_student = (student.exp() * (student - mixture)).sum(-1)  # [tokens]
        return TokenLoss(share * to_teacher + (1 - share) * to_student)
