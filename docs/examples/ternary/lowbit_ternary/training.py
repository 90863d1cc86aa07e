"""The ternary format in training: scales, and the latent weight that digits are chosen from."""

import torch
from lowbit import Parametrization, repeat_groups
from torch import Tensor, nn

from lowbit_ternary.format import TernaryWeight
from lowbit_ternary.levels import nearest_digits

LEAST_SHARE = 2.0**-7
"""The smallest scale that training may reach, as a share of what a group started with."""


class TrainableTernary(Parametrization):
    """A matrix as scale * (digit - 1), the digits chosen anew in every forward pass.

    Rounding passes gradients straight through, as in learned-step quantization (arXiv 1902.08153): a latent weight
    gets its gradient between the outer levels and none beyond them. A group whose scale is zero stays zero.

    Args:
        quantized: Where the scales start.
    """

    def __init__(self, quantized: TernaryWeight) -> None:
        super().__init__(trains_latent_weight=True)
        self.group_size = quantized.group_size
        self.scale_dtype = quantized.scales.dtype
        start = quantized.scales.detach().float()
        # Below the smallest normal number, rounding to the stored dtype could take the whole scale away.
        least = (start * LEAST_SHARE).clamp_min(torch.finfo(self.scale_dtype).tiny).minimum(start)
        self.scales = nn.Parameter(start.clone())  # [out, groups]
        self.least: Tensor
        self.register_buffer("least", least)  # [out, groups]

    def forward(self, latent_weight: Tensor) -> Tensor:
        """Return the matrix with its scales as they are stored, float32 [out, in]."""
        stored = self.scales.detach().to(self.scale_dtype).float()
        levels = nearest_digits(latent_weight.detach(), stored, self.group_size).float() - 1  # [out, in]
        length = latent_weight.shape[1]
        dense = repeat_groups(stored, self.group_size, length) * levels
        scales = repeat_groups(self.scales, self.group_size, length)  # [out, in]
        alive = scales.detach() > 0
        positions = latent_weight / torch.where(alive, scales, 1)
        inside = positions.clamp(-1, 1) * alive
        smooth = scales * (inside + (levels - inside).detach())
        # The value is exactly what is stored; only the gradient is that of the smooth path.
        return dense + (smooth - smooth.detach())

    @torch.no_grad()
    def project(self) -> None:
        """Keep scales positive and within the stored dtype's range; zero where they started as zero."""
        scales = self.scales.maximum(self.least).clamp_max(torch.finfo(self.scale_dtype).max)
        self.scales.copy_(scales * (self.least > 0))
