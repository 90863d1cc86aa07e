"""The reference kernel: unpack, dequantize, multiply; it serves every layout on every device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.contracts import Kernel, PackedWeight, Support, Workload
from lowbit.hookspecs import hookimpl
from lowbit.modeling.layouts import unpack


class ReferenceKernel(Kernel):
    """Unpacks and dequantizes the weight at every call; slow, and right by construction."""

    name: ClassVar[str] = "reference"
    priority: ClassVar[int] = -1000

    def supports(self, workload: Workload) -> Support:
        """Serve everything."""
        return Support(True)

    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias with W dequantized to the dtype of `x`."""
        return torch.nn.functional.linear(x, unpack(packed).dequantize().to(x.dtype), bias)


@hookimpl
def lowbit_kernels() -> Iterator[type[Kernel]]:
    """Register the reference kernel."""
    yield ReferenceKernel
