"""The reference kernel: unpack, dequantize, multiply; it serves every layout on every device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from lowbit.contracts import Kernel, PackedProduct, PackedWeight, Support, Workload
from lowbit.hookspecs import hookimpl
from lowbit.modeling.packed_op import describe_weight, packed_linear


class ReferenceKernel(Kernel):
    """Unpacks and dequantizes the weight at every call; slow, and right by construction."""

    name: ClassVar[str] = "reference"
    priority: ClassVar[int] = -1000

    def supports(self, workload: Workload) -> Support:
        """Serve everything."""
        return Support(True)

    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias with W dequantized to the dtype of `x`."""
        product: Tensor = packed_linear(x, list(packed.tensors.values()), bias, describe_weight(packed))
        return product

    def bind(self, packed: PackedWeight, workload: Workload) -> PackedProduct:
        """Describe the weight once."""
        tensors, weight = list(packed.tensors.values()), describe_weight(packed)

        def product(x: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = packed_linear(x, tensors, bias, weight)
            return result

        return product


@hookimpl
def lowbit_kernels() -> Iterator[type[Kernel]]:
    """Register the reference kernel."""
    yield ReferenceKernel
