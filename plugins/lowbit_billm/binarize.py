"""Masked binarization of one block, as BiLLM does it: closed-form means and scales."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Round = Callable[[Tensor], Tensor]
"""Rounds means or scales float32 to the values that will be stored."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return each row's mean over a mask [out, columns], float32 [out]; 0 where the row has no member."""
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)


def first_order(weight: Tensor, mask: Tensor, mean_shift: bool, stored: Round) -> tuple[Tensor, Tensor]:
    """Return mean and scale [out] of the masked weights: mu = mean(w) or 0, alpha = mean |w - mu| (eqs. 6 and 12).

    Args:
        weight: float32 [out, columns].
        mask: Which weights count, bool [out, columns] or [1, columns].
        mean_shift: Whether mu is subtracted: not in the paper, but in the authors' code.
        stored: Rounds to what is stored, before anything follows from a value.
    """
    mask = mask.expand_as(weight)
    mean = stored(masked_mean(weight, mask)) if mean_shift else weight.new_zeros(len(weight))
    return mean, stored(masked_mean((weight - mean.unsqueeze(1)).abs(), mask))


def second_order(weight: Tensor, mean_shift: bool, stored: Round) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Binarize and binarize the residual again (eq. 7).

    Args:
        weight: float32 [out, columns]; all of them count.
        mean_shift: As in `first_order`; both means are stored as their sum.
        stored: As in `first_order`.

    Returns:
        Sum of the means, both scales [out]; both signs as bool [out, columns].
    """
    everything = weight.new_ones(1, weight.shape[1]).bool()
    mean, scale = first_order(weight, everything, mean_shift, stored)
    sign = weight >= mean.unsqueeze(1)
    signed = sign.float().mul_(2).sub_(1) * scale.unsqueeze(1)
    if mean_shift:
        mean = stored(mean + masked_mean(weight - mean.unsqueeze(1) - signed, everything.expand_as(weight)))
    residual = weight - mean.unsqueeze(1) - signed
    scale2 = stored(masked_mean(residual.abs(), everything.expand_as(weight)))
    return mean, scale, scale2, sign, residual >= 0
