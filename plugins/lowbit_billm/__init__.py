"""BiLLM (arXiv 2402.04291) and ARB-LLM (arXiv 2410.03129): residual binarization of salient columns."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit import Method, QuantizedWeight, WeightQuantizer, hookimpl
from lowbit_billm.billm import BiLLM
from lowbit_billm.format import ResidualBinaryWeight

__all__ = ["BiLLM", "ResidualBinaryWeight"]


@hookimpl
def lowbit_weight_quantizers() -> Iterator[type[WeightQuantizer]]:
    """Register BiLLM."""
    yield BiLLM


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register the residual-binary format."""
    yield ResidualBinaryWeight


@hookimpl
def lowbit_methods() -> Iterator[Method]:
    """Register BiLLM in both readings."""
    yield Method("billm", quantizer="billm", description="BiLLM as published, 1 bit, blocks of 128")
    yield Method(
        "billm-code",
        quantizer="billm",
        options={"fidelity": "code"},
        description="BiLLM as its authors' code computes it, scales in float32",
    )
