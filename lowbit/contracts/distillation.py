"""`DistillationLoss`: what the student is trained to do, token by token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor


@dataclass(frozen=True)
class DistillationBatch:
    """Some tokens of a batch, as a loss sees them; the vocabulary is whole, the tokens come in chunks.

    Args:
        student_logits: float32 [tokens, vocabulary], with gradient.
        teacher_logits: float32 [tokens, vocabulary], without.
        labels: The token that follows each token in the data, int64 [tokens].
        student_hidden: For a loss that `needs_hidden_states`, the output of each decoder block, float32
            [tokens, hidden size], with gradient; else empty.
        teacher_hidden: The same of the teacher, without gradient.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor
    student_hidden: tuple[Tensor, ...] = ()
    teacher_hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TokenLoss:
    """One term of a loss: the weighted mean of its values over all tokens of an optimizer step, times a coefficient.

    The trainer divides by the sum of the weights over every chunk, micro-batch and process of the step.

    Args:
        value: [tokens], with gradient.
        weight: [tokens], taken without gradient; `None` weighs all tokens alike.
        coefficient: Of the term within the loss.
    """

    value: Tensor
    weight: Tensor | None = None
    coefficient: float = 1.0


class DistillationLoss(ABC):
    """Compares student and teacher on each token.

    A subclass sets `name`, may nest a pydantic `Config` whose fields are its options, and says whether it needs the
    hidden states of the decoder blocks.

    Example:
        class Agreement(DistillationLoss):
            name = "agreement"

            def __call__(self, batch):
                agreement = (batch.student_logits.softmax(-1) * batch.teacher_logits.softmax(-1)).sum(-1)
                return TokenLoss(-agreement.log())
    """

    name: ClassVar[str]
    needs_hidden_states: ClassVar[bool] = False

    class Config(BaseModel):
        """Options of the loss; a subclass declares its own."""

    def __init__(self, config: BaseModel | None = None) -> None:
        self.config: Any = self.Config() if config is None else config

    @abstractmethod
    def __call__(self, batch: DistillationBatch) -> TokenLoss | Sequence[TokenLoss]:
        """Return the loss of each token, as one term or several.

        The number, order and coefficients of the terms must not depend on the batch.
        """
