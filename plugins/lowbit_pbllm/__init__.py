"""PB-LLM (arXiv 2310.00034) for lowbit: partial binarization, its two formats and its presets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowbit import Method, PublishedFile, QuantizedWeight, WeightQuantizer, hookimpl, training_presets
from lowbit_pbllm.diagnostics import lowbit_diagnostics
from lowbit_pbllm.format import IndexedPartialBinaryWeight, PartialBinaryWeight
from lowbit_pbllm.quantizer import PartialBinarization

__all__ = ["IndexedPartialBinaryWeight", "PartialBinarization", "PartialBinaryWeight", "lowbit_diagnostics"]


@hookimpl
def lowbit_weight_quantizers() -> Iterator[type[WeightQuantizer]]:
    """Register partial binarization."""
    yield PartialBinarization


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register both partial-binary formats."""
    yield PartialBinaryWeight
    yield IndexedPartialBinaryWeight


@hookimpl
def lowbit_methods() -> Iterator[Method]:
    """Register PB-LLM as published and as its authors' code computes it."""
    yield Method(
        "pbllm",
        quantizer="pbllm",
        description="PB-LLM without training: a tenth of the weights at 8 bits, the others binary, GPTQ compensation",
    )
    yield Method(
        "pbllm-code",
        quantizer="pbllm",
        options={"fidelity": "code"},
        description="PB-LLM as the authors' code computes it: biased means and scales, trailing saliency, float32",
    )
    yield Method(
        "pbllm-qat",
        quantizer="pbllm",
        options={"saliency": "magnitude", "compensate": False},
        description="PB-LLM's training: salient weights frozen, the others binary with analytic scales, no teacher",
        presets={
            name: {**preset, "reconstruction": None}
            for name, preset in training_presets(loss="next-token", weight_rate=0.005).items()
            if preset["distillation"] is not None
        },
        preset="quick",
    )


@hookimpl
def lowbit_published_results() -> Iterator[PublishedFile]:
    """Register the numbers that the paper reports for PB-LLM."""
    yield PublishedFile(Path(__file__).parent / "published" / "pbllm.json", "PB-LLM on OPT and LLaMA")
