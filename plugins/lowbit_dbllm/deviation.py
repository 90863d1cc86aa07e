"""Deviation-Aware Distillation (DAD), our reconstruction: the paper's exact formula was not at hand."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from lowbit import DistillationBatch, DistillationLoss, TokenLoss

MINIMUM_ENTROPY = 1e-6
"""In nats. With exponents up to 3, the product of two powers is still an ordinary float32 number."""


class DeviationAwareDistillation(DistillationLoss):
    """Distillation in which tokens count by the entropies of teacher and student (DB-LLM, arXiv 2402.11960).

    This is our reconstruction. Known of the paper's loss is that it gives ambiguous tokens, measured by the entropy of
    teacher and student, more weight; not known is how both entropies are combined, with which exponents and mixing
    coefficient, and on which base term. With predictions p of the teacher and q of the student, entropies H, and base
    term d(p, q):

        weight = H(p)^teacher_gamma * H(q)^student_gamma      without gradient
        L_KD   = mean of d(p, q)
        L_DAD  = mean of d(p, q) weighted by weight / mean weight
        loss   = L_KD + mixing * L_DAD, or L_DAD alone

    One gamma for both is `teacher_gamma = student_gamma`; a share is `student_gamma = 1 - teacher_gamma`. As weights
    are divided by their mean over the optimizer step, entropies in nats, in bits or divided by log(vocabulary) give the
    same loss.
    """

    name: ClassVar[str] = "dad"

    class Config(BaseModel):
        """Options of Deviation-Aware Distillation, our reconstruction."""

        base: Literal["ce", "kl"] = Field(
            "ce", description="term that is weighted: soft cross-entropy or forward divergence (our reconstruction)"
        )
        teacher_gamma: float = Field(
            0.5, ge=0, le=3, description="exponent of the teacher's entropy in a token's weight (our reconstruction)"
        )
        student_gamma: float = Field(
            0.5, ge=0, le=3, description="exponent of the student's entropy in a token's weight (our reconstruction)"
        )
        form: Literal["added", "replaced"] = Field(
            "added", description="weighted term added to the plain one, or in its place (our reconstruction)"
        )
        mixing: float = Field(
            1.0, ge=0, description="coefficient of the added term; 0 is plain distillation (our reconstruction)"
        )

    def __call__(self, batch: DistillationBatch) -> list[TokenLoss]:
        """Return the plain and the weighted term, or the one that the options leave."""
        teacher = batch.teacher_logits.log_softmax(-1)  # [tokens, vocabulary]
        student = batch.student_logits.log_softmax(-1)  # [tokens, vocabulary]
        value = self._base(teacher, student)
        if self.config.form == "replaced":
            return [TokenLoss(value, self._weight(teacher, student))]
        if self.config.mixing == 0:
            return [TokenLoss(value)]
        return [TokenLoss(value), TokenLoss(value, self._weight(teacher, student), self.config.mixing)]

    def _base(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the base term [tokens] of log-probabilities [tokens, vocabulary]."""
        if self.config.base == "ce":
            return -(teacher.exp() * student).sum(-1)
        return (teacher.exp() * (teacher - student)).sum(-1)

    @torch.no_grad()
    def _weight(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the weight [tokens] of log-probabilities [tokens, vocabulary]."""
        powers = (self.config.teacher_gamma, self.config.student_gamma)
        return _entropy(teacher).pow(powers[0]) * _entropy(student).pow(powers[1])


def _entropy(log_probabilities: Tensor) -> Tensor:
    """Return the entropy in nats [tokens] of log-probabilities [tokens, vocabulary]."""
    entropy = (log_probabilities.exp() * log_probabilities).sum(-1).neg()
    return entropy.clamp(min=MINIMUM_ENTROPY)
