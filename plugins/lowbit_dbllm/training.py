"""Flexible Dual Binarization as it is trained: scales, and the latent weight that the codes are rounded from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit import Parametrization
from lowbit_dbllm.format import DualBinaryWeight
from lowbit_dbllm.gradients import GradientRule, dual_binarization

LEAST_GAP = 2.0**-8
"""The smallest distance of neighbouring levels that training may reach, as a share of a group's first alpha1."""


class TrainableDualBinarization(Parametrization):
    """A matrix as alpha1 * b1 + alpha2 * b2, the codes chosen anew in every forward pass (DB-LLM, section on FDB).

    Scales are held in the plain orientation alpha2 < 0 < alpha1 + alpha2 < alpha1; the sign of a mirrored group stays
    as it was quantized. `project` keeps the order of the levels, with which the paper's two step functions are
    nearest-level rounding. A group whose scales are zero stays zero.

    Args:
        quantized: Where the scales start.
        rule: How gradients are formed.
        trains_latent_weight: Whether the latent weight is trained beside the scales.
    """

    def __init__(self, quantized: DualBinaryWeight, rule: GradientRule, trains_latent_weight: bool) -> None:
        super().__init__(trains_latent_weight)
        first, second = quantized.alpha1.float(), quantized.alpha2.float()
        sign = torch.where(first < 0, -1.0, 1.0)
        self.group_size = quantized.group_size
        self.scale_dtype = quantized.alpha1.dtype
        self.rule = rule
        self.alpha1 = nn.Parameter(first * sign)  # [out, groups]
        self.alpha2 = nn.Parameter(second * sign)  # [out, groups]
        self.sign: Tensor
        self.least_gap: Tensor
        self.register_buffer("sign", sign)  # [out, groups]
        self.register_buffer("least_gap", first.abs() * LEAST_GAP)  # [out, groups]

    def forward(self, latent_weight: Tensor) -> Tensor:
        """Return the matrix with the scales as they are stored, [out, in]."""
        alpha1, alpha2 = (_as_stored(scale, self.scale_dtype) for scale in (self.alpha1, self.alpha2))
        return dual_binarization(latent_weight, alpha1, alpha2, self.sign, self.group_size, self.rule)

    @torch.no_grad()
    def project(self) -> None:
        """Keep alpha2 at or below minus the least gap, and alpha1 + alpha2 at or above it."""
        self.alpha2.copy_(torch.minimum(self.alpha2, -self.least_gap))
        self.alpha1.copy_(torch.maximum(self.alpha1, self.least_gap - self.alpha2))

    def scales(self) -> tuple[Tensor, Tensor]:
        """Return alpha1 and alpha2 with their orientation's sign, float32 [out, groups]."""
        return self.alpha1.detach() * self.sign, self.alpha2.detach() * self.sign


def _as_stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to the stored dtype, the gradient passing straight through."""
    return scale + (scale.detach().to(dtype).float() - scale.detach())
