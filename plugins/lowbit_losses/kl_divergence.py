"""Kullback-Leibler divergence between the predictions of teacher and student."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from lowbit import DistillationBatch, DistillationLoss, TokenLoss


class KLDivergence(DistillationLoss):
    """T^2 * KL of the predictions p of the teacher and q of the student, both at temperature T.

    The factor T^2 keeps the size of the gradients (Hinton et al., arXiv 1503.02531). KL(p || q) makes the student cover
    whatever the teacher deems likely, KL(q || p) makes it avoid what the teacher deems unlikely.
    """

    name: ClassVar[str] = "kl"

    class Config(BaseModel):
        """Options of the Kullback-Leibler divergence."""

        direction: Literal["forward", "reverse", "symmetric"] = Field(
            "forward", description="KL(teacher || student), KL(student || teacher), or a weighted mean of both"
        )
        temperature: float = Field(1.0, gt=0, description="by which logits are divided; the loss grows by its square")
        forward_share: float = Field(
            0.5, ge=0, le=1, description="weight of the forward divergence when `direction` is symmetric"
        )

    def __call__(self, batch: DistillationBatch) -> TokenLoss:
        """Return the divergence of each token, in nats."""
        temperature = self.config.temperature
        teacher = (batch.teacher_logits / temperature).log_softmax(-1)  # [tokens, vocabulary]
        student = (batch.student_logits / temperature).log_softmax(-1)  # [tokens, vocabulary]
        return TokenLoss(self._divergence(teacher, student) * temperature**2)

    def _divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the divergence [tokens] of log-probabilities [tokens, vocabulary]."""
        if self.config.direction == "forward":
            return _kl(teacher, student)
        if self.config.direction == "reverse":
            return _kl(student, teacher)
        share: float = self.config.forward_share
        return share * _kl(teacher, student) + (1 - share) * _kl(student, teacher)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second) [tokens] of log-probabilities [tokens, vocabulary]."""
    return (first.exp() * (first - second)).sum(-1)
