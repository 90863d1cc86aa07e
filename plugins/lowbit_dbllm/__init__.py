"""DB-LLM (arXiv 2402.11960) for lowbit: Flexible Dual Binarization, its format, packer and distillation loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowbit import (
    DistillationLoss,
    Kernel,
    Method,
    Packer,
    PublishedFile,
    QuantizedWeight,
    WeightQuantizer,
    hookimpl,
    training_presets,
)
from lowbit_dbllm.deviation import DeviationAwareDistillation
from lowbit_dbllm.diagnostics import lowbit_diagnostics
from lowbit_dbllm.format import DualBinaryWeight
from lowbit_dbllm.interleaved import InterleavedPacker
from lowbit_dbllm.packer import BitPlanePacker
from lowbit_dbllm.paths import lowbit_output_diagnostics
from lowbit_dbllm.quantizer import FlexibleDualBinarization
from lowbit_dbllm.triton_kernel import TritonDualBinary

__all__ = [
    "BitPlanePacker",
    "DeviationAwareDistillation",
    "DualBinaryWeight",
    "FlexibleDualBinarization",
    "InterleavedPacker",
    "TritonDualBinary",
    "lowbit_diagnostics",
    "lowbit_output_diagnostics",
]


@hookimpl
def lowbit_weight_quantizers() -> Iterator[type[WeightQuantizer]]:
    """Register Flexible Dual Binarization."""
    yield FlexibleDualBinarization


@hookimpl
def lowbit_distillation_losses() -> Iterator[type[DistillationLoss]]:
    """Register Deviation-Aware Distillation."""
    yield DeviationAwareDistillation


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register the dual-binary format."""
    yield DualBinaryWeight


@hookimpl
def lowbit_packers() -> Iterator[type[Packer]]:
    """Register the bit-plane packer and the interleaved one."""
    yield BitPlanePacker
    yield InterleavedPacker


@hookimpl
def lowbit_kernels() -> Iterator[type[Kernel]]:
    """Register the Triton kernel."""
    yield TritonDualBinary


@hookimpl
def lowbit_methods() -> Iterator[Method]:
    """Register DB-LLM and its post-training form."""
    yield Method(
        "dbllm",
        quantizer="fdb",
        packer="interleaved",
        description="DB-LLM: two bit planes and two scales a group of 64, trained block by block, then as a whole",
        presets=training_presets(loss="dad"),
        preset="quick",
        default=True,
    )
    yield Method(
        "dbllm-ptq",
        quantizer="fdb",
        packer="interleaved",
        description="Flexible Dual Binarization without training: two bit planes, two scales a group of 64",
    )


@hookimpl
def lowbit_published_results() -> Iterator[PublishedFile]:
    """Register the numbers that were published for DB-LLM."""
    yield PublishedFile(Path(__file__).parent / "published" / "dbllm.json", "DB-LLM on LLaMA, as others quote it")
