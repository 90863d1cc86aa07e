"""Cross-entropy with the token that follows in the data."""

from __future__ import annotations

from typing import ClassVar

from torch.nn.functional import cross_entropy

from lowbit import DistillationBatch, DistillationLoss, TokenLoss


class NextToken(DistillationLoss):
    """-log q of the next token, the loss of language modelling: PB-LLM (arXiv 2310.00034) trains with it alone."""

    name: ClassVar[str] = "next-token"

    class Config(DistillationLoss.Config):
        """The next-token loss has no options."""

    def __call__(self, batch: DistillationBatch) -> TokenLoss:
        """Return the cross-entropy of each token with its label, in nats."""
        return TokenLoss(cross_entropy(batch.student_logits, batch.labels, reduction="none"))
