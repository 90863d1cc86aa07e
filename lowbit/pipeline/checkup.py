"""What `lowbit doctor` reports: versions, devices, and which kernels serve which layouts."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lowbit.contracts import FormatSpec
from lowbit.modeling.kernel_choice import choose_kernels, kernel_verdicts, workload_of
from lowbit.registry import Registry

PACKAGES = (
    "lowbit",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "lm_eval",
    "datasets",
    "accelerate",
    "pluggy",
    "pydantic",
    "numpy",
    "triton",
    "llvmlite",
)
EXAMPLE_OUT, EXAMPLE_IN, EXAMPLE_GROUP = 4096, 4096, 64


@dataclass(frozen=True)
class KernelLine:
    """What one kernel says of one layout on one device."""

    format: str
    packer: str
    device: str
    kernel: str
    served: bool
    chosen: bool
    reason: str


def versions() -> dict[str, str]:
    """Return Python's and the packages' versions; absent packages are marked."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def devices() -> dict[str, str]:
    """Return the devices that torch can use, with a description."""
    found = {"cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    else:
        reason = "torch was built without CUDA" if torch.version.cuda is None else "no usable GPU"
        found["cuda"] = f"not available: {reason}"
    return found


def kernel_report(registry: Registry) -> Iterator[KernelLine]:
    """Ask every kernel about every layout on every usable device, for a 4096 x 4096 weight in groups of 64."""
    usable = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for format_name in sorted(registry.table("format")):
        for packer in _packers(registry, format_name):
            for device in usable:
                yield from _lines(format_name, packer, device)


def _packers(registry: Registry, format_name: str) -> list[str]:
    special = [name for name, entry in registry.table("packer").items() if format_name in entry.item.formats]
    return ["plain", *sorted(special)]


def _lines(format_name: str, packer: str, device: str) -> Iterator[KernelLine]:
    sizes = {"out": EXAMPLE_OUT, "in": EXAMPLE_IN, "groups": EXAMPLE_IN // EXAMPLE_GROUP}
    spec = FormatSpec(format_name, 1, sizes, {}, {"group_size": EXAMPLE_GROUP, "bits": 2})
    workload = workload_of(spec, packer, torch.device(device), torch.float32)
    chosen = choose_kernels(workload)[0].name
    for verdict in kernel_verdicts(workload):
        yield KernelLine(
            format_name, packer, device, verdict.kernel, verdict.served, verdict.kernel == chosen, verdict.reason
        )
