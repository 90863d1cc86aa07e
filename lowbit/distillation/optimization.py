"""AdamW with relative learning rates and a cosine schedule; what both ways to train share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from lowbit.contracts import OptimizationSettings
from lowbit.distillation.sharding import whole

FIRST_STEPS = 5
"""How many steps say what an ordinary loss is."""


def make_optimizer(
    latent_weights: Mapping[str, nn.Parameter],
    scales: Mapping[str, nn.Parameter],
    settings: OptimizationSettings,
    unquantized: Mapping[str, nn.Parameter] | None = None,
    unquantized_rate: float = 0.0,
) -> torch.optim.AdamW:
    """Make the optimizer; each tensor has a learning rate in proportion to its root mean square as it is now.

    Args:
        latent_weights: Trained at `weight_rate`, with weight decay.
        scales: Trained at `scale_rate`, without.
        settings: Rates and decays.
        unquantized: Parameters that are trained as they are, without weight decay.
        unquantized_rate: Their learning rate.
    """
    groups = [
        {"params": [tensor], "name": name, "full_rate": rate * _size(tensor), "weight_decay": decay}
        for tensors, rate, decay in (
            (latent_weights, settings.weight_rate, settings.weight_decay),
            (scales, settings.scale_rate, 0.0),
            (unquantized or {}, unquantized_rate, 0.0),
        )
        for name, tensor in tensors.items()
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=1e-12)


def _size(tensor: Tensor) -> float:
    """Return the root mean square of a tensor, or 1 of one that is zero."""
    return float(whole(tensor.detach()).float().square().mean().sqrt()) or 1.0


def rate_at(step: int, settings: OptimizationSettings) -> float:
    """Return the share of the learning rates that holds in a step: a linear rise, then half a cosine.

    Args:
        step: From 0.
        settings: Number of steps, share of the rise, and the share that remains at the end.
    """
    rise = math.ceil(settings.warmup * settings.steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    progress = (step - rise) / max(1, settings.steps - rise)
    return settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * progress)) / 2


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every tensor its share of its full learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["full_rate"]


def has_diverged(loss: float, gradient_norm: float, losses: Sequence[float], settings: OptimizationSettings) -> bool:
    """Say whether a step's loss or gradient is not finite, or the loss far above the first ones.

    Args:
        loss: Of this step.
        gradient_norm: Of this step, before clipping.
        losses: Of the steps before.
        settings: `explosion` says how far is too far.
    """
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        return True
    usual = abs(median(losses[:FIRST_STEPS])) if len(losses) >= FIRST_STEPS else math.inf
    # A student that started as its teacher has a loss of 0, of which no multiple says anything.
    return loss > settings.explosion * (usual or math.inf)
