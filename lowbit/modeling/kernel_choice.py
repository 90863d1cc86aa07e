"""Chooses the kernel for a packed weight on a device, and makes it ready."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import torch

from lowbit.contracts import FormatSpec, Kernel, PackedProduct, PackedWeight, Workload
from lowbit.errors import LowbitError
from lowbit.modeling.layouts import get_packer
from lowbit.registry import registry


class KernelWarning(UserWarning):
    """A kernel that said it serves a weight could not be made ready, and another took its place."""


@dataclass(frozen=True)
class KernelVerdict:
    """What one kernel said about a workload.

    Args:
        kernel: Its name.
        served: Whether it serves the workload.
        reason: Why not.
    """

    kernel: str
    served: bool
    reason: str


@dataclass(frozen=True)
class BoundKernel:
    """A product with one packed weight, ready for activations of one device and dtype."""

    kernel: str
    device: torch.device
    dtype: torch.dtype
    product: PackedProduct


def workload_of(spec: FormatSpec, packer: str, device: torch.device, dtype: torch.dtype) -> Workload:
    """Describe the products with a weight of this declaration and layout."""
    return Workload(spec, get_packer(packer), registry().format(spec.format), device, dtype)


def choose_kernels(workload: Workload) -> list[Kernel]:
    """Return the kernels that serve a workload: first the one that plugins choose, then by priority.

    Raises:
        LowbitError: No kernel serves it, with each one's reason.
    """
    kernels = [made() for made in registry().kernels()]
    serving = [kernel for kernel in kernels if kernel.supports(workload).served]
    if not serving:
        reasons = "; ".join(f"{verdict.kernel}: {verdict.reason}" for verdict in kernel_verdicts(workload))
        raise LowbitError(f"no kernel serves format {workload.spec.format} on {workload.device}: {reasons}")
    chosen: Kernel | None = registry().hook.lowbit_choose_kernel(workload=workload, kernels=serving)
    return serving if chosen is None else [chosen, *(kernel for kernel in serving if kernel is not chosen)]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def bind_kernel(packed: PackedWeight, device: torch.device, dtype: torch.dtype) -> BoundKernel:
    """Return the product through the first kernel that can be made ready.

    A kernel that fails is named in a warning, once a process, and the next one takes its place.

    Raises:
        LowbitError: No kernel serves the weight, or all of them failed.
    """
    workload = workload_of(packed.spec, packed.packer, device, dtype)
    failures = []
    for kernel in choose_kernels(workload):
        try:
            # What is arranged here must serve a later backward pass, too.
            with torch.inference_mode(False):
                product = kernel.bind(packed, workload)
            return BoundKernel(kernel.name, device, dtype, product)
        except Exception as error:  # whatever a kernel's compiler raises
            first = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            failures.append(f"{kernel.name}: {first}")
            _warn_once(kernel.name, first)
    raise LowbitError(f"no kernel could be made ready for format {packed.spec.format}: {'; '.join(failures)}")


@cache
def _warn_once(kernel: str, message: str) -> None:
    warnings.warn(
        f"kernel {kernel} could not be made ready and is not used ({message}); results stay right, but slower",
        KernelWarning,
        stacklevel=4,
    )


def kernel_verdicts(workload: Workload) -> list[KernelVerdict]:
    """Ask every kernel, highest priority first, whether it serves a workload."""
    verdicts = []
    for made in registry().kernels():
        support = made().supports(workload)
        verdicts.append(KernelVerdict(made.name, support.served, support.reason))
    return verdicts
