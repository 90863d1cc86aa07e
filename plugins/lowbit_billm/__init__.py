"""BiLLM (arXiv 2402.04291) and ARB-LLM (arXiv 2410.03129): residual binarization of salient columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowbit import Method, PublishedFile, QuantizedWeight, WeightQuantizer, hookimpl
from lowbit_billm.arbllm import ARBLLM
from lowbit_billm.billm import BiLLM
from lowbit_billm.diagnostics import lowbit_diagnostics
from lowbit_billm.format import ResidualBinaryWeight

__all__ = ["ARBLLM", "BiLLM", "ResidualBinaryWeight", "lowbit_diagnostics"]


@hookimpl
def lowbit_weight_quantizers() -> Iterator[type[WeightQuantizer]]:
    """Register BiLLM and ARB-LLM."""
    yield BiLLM
    yield ARBLLM


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register the residual-binary format."""
    yield ResidualBinaryWeight


@hookimpl
def lowbit_methods() -> Iterator[Method]:
    """Register BiLLM and ARB-LLM in both readings, and the variants of the latter."""
    yield Method("billm", quantizer="billm", description="BiLLM as published, 1 bit, blocks of 128")
    yield Method(
        "billm-code",
        quantizer="billm",
        options={"fidelity": "code"},
        description="BiLLM as its authors' code computes it, scales in float32",
    )
    yield Method("arbllm", quantizer="arbllm", description="ARB-LLM_RC as published, 1 bit, blocks of 128")
    yield Method(
        "arbllm-code",
        quantizer="arbllm",
        options={"fidelity": "code"},
        description="ARB-LLM_RC as its authors' code computes it, scales in float32",
    )
    yield Method(
        "arbllm-x",
        quantizer="arbllm",
        options={"variant": "arb-x"},
        description="ARB-LLM_X as published, fitted to the calibration inputs",
    )
    yield Method(
        "arbllm-arb",
        quantizer="arbllm",
        options={"variant": "arb", "column_group_bitmap": False},
        description="ARB as published, without the column-group bitmap",
    )


@hookimpl
def lowbit_published_results() -> Iterator[PublishedFile]:
    """Register the numbers that were published for BiLLM and ARB-LLM."""
    folder = Path(__file__).parent / "published"
    yield PublishedFile(folder / "billm.json", "BiLLM on OPT, LLaMA and Vicuna")
    yield PublishedFile(folder / "arbllm.json", "ARB-LLM on LLaMA")
