"""Products with packed bit planes on the processor, by code that llvmlite compiles where it runs."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit import Kernel, hookimpl
from lowbit_cpu.kernel import CpuBitPlanes, CpuBitPlanesInt8

__all__ = ["CpuBitPlanes", "CpuBitPlanesInt8"]


@hookimpl
def lowbit_kernels() -> Iterator[type[Kernel]]:
    """Register the kernels."""
    yield CpuBitPlanes
    yield CpuBitPlanesInt8
