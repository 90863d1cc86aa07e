"""Squared distance between the hidden states of teacher and student."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import normalize

from lowbit import DistillationBatch, DistillationLoss, TokenLoss


class HiddenStateDistance(DistillationLoss):
    """Mean squared difference of the decoder blocks' outputs, averaged over the blocks.

    With `normalize="l2"` it is the squared distance of the states scaled to length 1, between 0 and 4, as OneBit (arXiv
    2402.11295) takes it; OneBit adds up the blocks where we average, so its coefficient is ours divided by their
    number.
    """

    name: ClassVar[str] = "mse"
    needs_hidden_states: ClassVar[bool] = True

    class Config(BaseModel):
        """Options of the distance of hidden states."""

        normalize: Literal["none", "l2"] = Field(
            "none", description="states as they are, mean over their elements, or scaled to length 1, sum over them"
        )
        blocks: Literal["all", "last"] = Field("all", description="decoder blocks whose outputs are compared")

    def __call__(self, batch: DistillationBatch) -> TokenLoss:
        """Return the squared difference of each token."""
        start = -1 if self.config.blocks == "last" else 0
        pairs = zip(batch.student_hidden[start:], batch.teacher_hidden[start:], strict=True)
        distances = [self._distance(student, teacher) for student, teacher in pairs]
        return TokenLoss(torch.stack(distances).mean(0))

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance [tokens] of two states [tokens, hidden size]."""
        if self.config.normalize == "l2":
            return (normalize(student, dim=-1) - normalize(teacher, dim=-1)).square().sum(-1)
        return (student - teacher).square().mean(-1)
