"""A packed weight as buffers of a module, and the product with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

import torch
from torch import Tensor, nn

from lowbit.contracts import FormatSpec, PackedWeight
from lowbit.errors import LowbitError
from lowbit.modeling.kernel_choice import BoundKernel, bind_kernel
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
        self._bound: BoundKernel | None = None
        self._bound_tensors: tuple[tuple[int, int], ...] = ()

    def packed(self) -> PackedWeight:
        """Return the packed weight."""
        return PackedWeight(self.spec, self.packer, {name: getattr(self, name) for name in self._layout})

    @property
    def device(self) -> torch.device:
        """Where the packed tensors are."""
        device: torch.device = getattr(self, next(iter(self._layout))).device
        return device

    def bind(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make the kernel ready for activations of a device and dtype; the first product does it otherwise.

        Raises:
            LowbitError: The weight is on another device, or has no numbers yet.
        """
        if self.device != device:
            raise LowbitError(f"the packed weight is on {self.device}, the activations are on {device}: move the model")
        self._bound = bind_kernel(self.packed(), device, dtype)
        self._bound_tensors = self._identities()

    @property
    def chosen_kernel(self) -> str | None:
        """Name of the kernel that products go through; `None` before one was chosen."""
        return None if self._bound is None else self._bound.kernel

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias for x [..., in]."""
        if self._must_bind(x):
            self.bind(x.device, x.dtype)
        assert self._bound is not None
        return self._bound.product(x, bias)

    def _must_bind(self, x: Tensor) -> bool:
        bound = self._bound
        if bound is None or bound.device != x.device or bound.dtype != x.dtype:
            return True
        # A kernel may hold the weight in another arrangement; in a compiled model tensors stay what they were.
        return not torch.compiler.is_compiling() and self._bound_tensors != self._identities()

    def _identities(self) -> tuple[tuple[int, int], ...]:
        """Return what changes when a packed tensor is replaced, or written to."""
        tensors = [getattr(self, name) for name in self._layout]
        return tuple((id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)

    def dequantize(self) -> Tensor:
        """Return the matrix that the packed weight stands for, float32 [out, in]."""
        return unpack(self.packed()).dequantize()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        stored = {name: getattr(self, name) for name in self._layout}
        self._bound = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in stored.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                self.register_buffer(name, before.to(after.device))
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # A bound product may hold the weight in another arrangement, which would stay as it was.
        self._bound = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code can be neither copied nor saved; a copy binds anew.
        return {**self.__dict__, "_bound": None}

    def extra_repr(self) -> str:
        """Describe the weight in the model's printed form."""
        return f"{self.spec.sizes['in']} -> {self.spec.sizes['out']}, format={self.spec.format}, packer={self.packer}"


_BINDS_ON_LOAD: ContextVar[bool] = ContextVar("binds_on_load", default=True)


@contextmanager
def binding_later() -> Iterator[None]:
    """Load packed models without making their kernels ready: for those that are dequantized at once."""
    token = _BINDS_ON_LOAD.set(False)
    try:
        yield
    finally:
        _BINDS_ON_LOAD.reset(token)


def bind_kernels(model: nn.Module, dtype: torch.dtype) -> None:
    """Make the kernels of a model's packed weights ready, so that the model can be compiled without graph breaks.

    Args:
        model: A model with its weights loaded; what is on the meta device is left for later.
        dtype: Of the activations.
    """
    if not _BINDS_ON_LOAD.get():
        return
    for module in model.modules():
        if isinstance(module, PackedLinear) and module.device.type != "meta":
            module.bind(module.device, dtype)
