"""`Kernel`: a way to multiply by a packed weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.contracts.fields import FormatSpec
from lowbit.contracts.formats import QuantizedWeight
from lowbit.contracts.packing import PackedWeight, Packer

PackedProduct = Callable[[Tensor, Tensor | None], Tensor]
"""Takes activations [..., in] and a bias [out] or `None`, and returns x @ W^T + bias [..., out]."""


@dataclass(frozen=True)
class Workload:
    """What a kernel is asked to serve.

    Args:
        spec: The resolved declaration of the weight.
        packer: The packer of the layout that the weight has.
        format_class: The class that gives the weight its meaning.
        device: Where weight and activations are.
        dtype: Dtype of the activations.
    """

    spec: FormatSpec
    packer: Packer
    format_class: type[QuantizedWeight]
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Support:
    """Whether a kernel serves a workload, and if not, why."""

    served: bool
    reason: str = ""


class Kernel(ABC):
    """Multiplies activations by a packed weight; the one with the highest priority that serves a workload is used.

    A model binds every packed layer to a kernel once, through `bind`. A kernel with nothing to prepare writes `linear`
    alone; one that compiles or rearranges writes `bind`. An exception in `bind` makes lowbit warn and take the next
    kernel.

    `tolerance` is the largest error of a product in float32, as a share of |row| |x|; a kernel that is approximate on
    purpose declares a larger one.
    """

    name: ClassVar[str]
    priority: ClassVar[int] = 0
    tolerance: ClassVar[float] = 1e-5

    @abstractmethod
    def supports(self, workload: Workload) -> Support:
        """Say whether this kernel serves the workload; without a reason a refusal helps nobody."""

    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias.

        Args:
            x: Activations [..., in].
            packed: The packed weight W, logically [out, in].
            bias: [out] or `None`.
        """
        raise NotImplementedError(
            f"kernel {self.name!r} multiplies by bound weights: call bind(packed, workload)(x, bias)"
        )

    def bind(self, packed: PackedWeight, workload: Workload) -> PackedProduct:
        """Return the product with one weight, made ready; `torch.compile` must be able to trace it.

        Args:
            packed: The packed weight; the product may keep its tensors, and must give right answers only while they
                are unchanged.
            workload: What `supports` agreed to.
        """
        return partial(_product, self, packed)


def _product(kernel: Kernel, packed: PackedWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    return kernel.linear(x, packed, bias)
