"""A distillation loss in ten lines.

lowbit bench --plugin docs/examples/agreement_loss.py --method dbllm --set distillation.loss=agreement
"""

from lowbit import DistillationLoss, TokenLoss, hookimpl


class Agreement(DistillationLoss):
    """Minus the logarithm of the chance that teacher and student draw the same token."""

    name = "agreement"

    def __call__(self, batch):
        """Return the loss of each token."""
        teacher, student = batch.teacher_logits.softmax(-1), batch.student_logits.softmax(-1)
        return TokenLoss(-(teacher * student).sum(-1).log())


@hookimpl
def lowbit_distillation_losses():
    """Register the loss."""
    yield Agreement
