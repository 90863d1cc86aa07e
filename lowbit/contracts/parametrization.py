"""`Parametrization`: one matrix as it is trained, its fake-quantized weight a function of a latent one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Parametrization(nn.Module, ABC):
    """Turns a latent weight into the quantized weight that it stands for, differentiably.

    The module's own parameters (scales, zero points) are float32 and train at the scales' learning rate; the latent
    weight trains at its own rate, if at all. What is neither belongs into buffers.

    Args:
        trains_latent_weight: Whether the latent weight is trained beside the module's parameters.

    A class whose first output is not what the matrix was quantized to sets `starts_as_quantized` to `False`.
    """

    starts_as_quantized: ClassVar[bool] = True

    def __init__(self, trains_latent_weight: bool) -> None:
        super().__init__()
        self.trains_latent_weight = trains_latent_weight

    @abstractmethod
    def forward(self, latent_weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, float32 [out, in]: what the frozen weight will dequantize to.

        Args:
            latent_weight: float32 [out, in].
        """

    def project(self) -> None:
        """Put the parameters back where they must be; called after each optimizer step, without gradients."""
        return
