"""A packed weight as buffers of a module, and the product with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from lowbit.contracts import FormatSpec, Kernel, PackedWeight, Workload
from lowbit.modeling.kernel_choice import choose_kernel
from lowbit.modeling.layouts import layout_of, unpack


class PackedLinear(nn.Module):
    """Holds one packed weight in named buffers that keep the dtypes of the file.

    `model.to(torch.bfloat16)` and the like move the buffers between devices but never cast them: scales stay as they
    are stored.

    Args:
        spec: The resolved declaration of the format.
        packer: Name of the packer whose layout the buffers have.
        device: Where to make the buffers; the meta device before weights are loaded.
    """

    def __init__(self, spec: FormatSpec, packer: str, device: torch.device | str = "meta") -> None:
        super().__init__()
        self.spec = spec
        self.packer = packer
        self._layout = layout_of(spec, packer)
        for name, layout in self._layout.items():
            self.register_buffer(name, torch.empty(layout.shape, dtype=layout.dtype, device=device))
        self._kernel: tuple[torch.device, torch.dtype, Kernel] | None = None

    def packed(self) -> PackedWeight:
        """Return the packed weight."""
        return PackedWeight(self.spec, self.packer, {name: getattr(self, name) for name in self._layout})

    def kernel(self, x: Tensor) -> Kernel:
        """Return the kernel for these activations, chosen once a device and dtype."""
        if self._kernel is None or self._kernel[:2] != (x.device, x.dtype):
            chosen = choose_kernel(Workload(self.spec, self.packer, x.device, x.dtype))
            self._kernel = (x.device, x.dtype, chosen)
        return self._kernel[2]

    @property
    def chosen_kernel(self) -> str | None:
        """Name of the kernel that the last product went through; `None` before the first."""
        return None if self._kernel is None else self._kernel[2].name

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias for x [..., in]."""
        return self.kernel(x).linear(x, self.packed(), bias)

    def dequantize(self) -> Tensor:
        """Return the matrix that the packed weight stands for, float32 [out, in]."""
        return unpack(self.packed()).dequantize()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        stored = {name: getattr(self, name) for name in self._layout}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in stored.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                self.register_buffer(name, before.to(after.device))
        return self

    def extra_repr(self) -> str:
        """Describe the weight in the model's printed form."""
        return f"{self.spec.sizes['in']} -> {self.spec.sizes['out']}, format={self.spec.format}, packer={self.packer}"
