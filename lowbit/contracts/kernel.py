"""`Kernel`: a way to multiply by a packed weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.contracts.fields import FormatSpec
from lowbit.contracts.packing import PackedWeight


@dataclass(frozen=True)
class Workload:
    """What a kernel is asked to serve.

    Args:
        spec: The resolved declaration of the weight.
        packer: Name of the packer whose layout the weight has.
        device: Where weight and activations are.
        dtype: Dtype of the activations.
    """

    spec: FormatSpec
    packer: str
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Support:
    """Whether a kernel serves a workload, and if not, why."""

    served: bool
    reason: str = ""


class Kernel(ABC):
    """Multiplies activations by a packed weight; the one with the highest priority that serves a workload is used."""

    name: ClassVar[str]
    priority: ClassVar[int] = 0

    @abstractmethod
    def supports(self, workload: Workload) -> Support:
        """Say whether this kernel serves the workload; without a reason a refusal helps nobody."""

    @abstractmethod
    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias.

        Args:
            x: Activations [..., in].
            packed: The packed weight W, logically [out, in].
            bias: [out] or `None`.
        """
