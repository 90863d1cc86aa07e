"""Gradients over several processes: their average, and the norm that clipping needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from lowbit.distillation.sharding import is_split, own_part


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], processes: int) -> None:
    """Average gradients over all processes; a parameter that no token reached has gradient 0.

    Gradients of split parameters were averaged while they were made.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if processes > 1 and not is_split(parameter):
            distributed.all_reduce(parameter.grad)
            parameter.grad /= processes


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None) -> float:
    """Scale all gradients so that their common norm is at most a limit, and return the norm that they had.

    Args:
        parameters: All with gradients, whole or split.
        limit: `None` for none.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = float((_squares(gradients, split=False) + _squares(gradients, split=True)).sqrt())
    if limit is not None and norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)
    return norm


def _squares(gradients: Sequence[Tensor], split: bool) -> Tensor:
    """Return the sum of squares of the gradients that are split, or of those that are not, over all processes."""
    chosen = [own_part(gradient) for gradient in gradients if is_split(gradient) == split]
    if not chosen:
        return torch.zeros((), dtype=torch.float64)
    # Digits to spare, so that it does not matter how the gradients are split; Apple's GPUs have no float64.
    digits = torch.float32 if chosen[0].device.type == "mps" else torch.float64
    total = torch.stack([torch.linalg.vector_norm(part, dtype=digits) for part in chosen]).double().square().sum()
    if split:
        distributed.all_reduce(total)
    return total.cpu()
