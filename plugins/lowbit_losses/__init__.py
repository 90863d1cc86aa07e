"""Losses that a student is trained with: divergences of the predictions, hidden states, the data's own labels."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit import DistillationLoss, hookimpl
from lowbit_losses.cross_entropy import SoftCrossEntropy
from lowbit_losses.hidden_states import HiddenStateDistance
from lowbit_losses.kl_divergence import KLDivergence
from lowbit_losses.next_token import NextToken

__all__ = ["HiddenStateDistance", "KLDivergence", "NextToken", "SoftCrossEntropy"]


@hookimpl
def lowbit_distillation_losses() -> Iterator[type[DistillationLoss]]:
    """Register the losses that need no paper's plugin."""
    yield KLDivergence
    yield SoftCrossEntropy
    yield HiddenStateDistance
    yield NextToken
