"""Chooses the kernel for a packed weight on a device."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.contracts import Kernel, Workload
from lowbit.errors import LowbitError
from lowbit.registry import registry


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


def choose_kernel(workload: Workload) -> Kernel:
    """Return the kernel that plugins choose, else the one of highest priority that serves the workload.

    Raises:
        LowbitError: No kernel serves it, with each one's reason.
    """
    kernels = [made() for made in registry().kernels()]
    serving = [kernel for kernel in kernels if kernel.supports(workload).served]
    if not serving:
        reasons = "; ".join(f"{verdict.kernel}: {verdict.reason}" for verdict in kernel_verdicts(workload))
        raise LowbitError(f"no kernel serves format {workload.spec.format} on {workload.device}: {reasons}")
    chosen: Kernel | None = registry().hook.lowbit_choose_kernel(workload=workload, kernels=serving)
    return chosen or serving[0]


def kernel_verdicts(workload: Workload) -> list[KernelVerdict]:
    """Ask every kernel, highest priority first, whether it serves a workload."""
    verdicts = []
    for made in registry().kernels():
        support = made().supports(workload)
        verdicts.append(KernelVerdict(made.name, support.served, support.reason))
    return verdicts
