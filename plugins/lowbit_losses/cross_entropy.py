"""Soft cross-entropy of teacher and student."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, Field

from lowbit import DistillationBatch, DistillationLoss, TokenLoss


class SoftCrossEntropy(DistillationLoss):
    """T^2 * -sum p log q for the predictions p of the teacher and q of the student, both at temperature T.

    Its gradient is that of the forward Kullback-Leibler divergence; its value is larger by the teacher's entropy.
    """

    name: ClassVar[str] = "ce"

    class Config(BaseModel):
        """Options of the soft cross-entropy."""

        temperature: float = Field(1.0, gt=0, description="by which logits are divided; the loss grows by its square")

    def __call__(self, batch: DistillationBatch) -> TokenLoss:
        """Return the cross-entropy of each token, in nats."""
        temperature = self.config.temperature
        teacher = (batch.teacher_logits / temperature).softmax(-1)  # [tokens, vocabulary]
        student = (batch.student_logits / temperature).log_softmax(-1)  # [tokens, vocabulary]
        return TokenLoss(-(teacher * student).sum(-1) * temperature**2)
