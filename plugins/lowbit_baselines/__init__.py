"""Baselines: the unquantized parent, round to nearest, and GPTQ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowbit import Method, PublishedFile, QuantizedWeight, WeightQuantizer, hookimpl
from lowbit_baselines.gptq import GPTQ
from lowbit_baselines.round_to_nearest import RoundToNearest
from lowbit_baselines.uniform import OrderedUniformWeight, UniformWeight

__all__ = ["GPTQ", "OrderedUniformWeight", "RoundToNearest", "UniformWeight"]


@hookimpl
def lowbit_weight_quantizers() -> Iterator[type[WeightQuantizer]]:
    """Register round to nearest and GPTQ."""
    yield RoundToNearest
    yield GPTQ


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register the uniform-integer formats."""
    yield UniformWeight
    yield OrderedUniformWeight


@hookimpl
def lowbit_methods() -> Iterator[Method]:
    """Register the baselines."""
    yield Method("none", quantizer=None, description="the parent itself, unquantized")
    yield Method("rtn", quantizer="rtn", description="round to nearest, 2 bits, groups of 64", default=True)
    yield Method("gptq", quantizer="gptq", description="GPTQ, 2 bits, groups of 128")
    yield Method(
        "gptq-code",
        quantizer="gptq",
        options={"fidelity": "code"},
        description="GPTQ as its authors' code computes it, scales in float32",
    )


@hookimpl
def lowbit_published_results() -> Iterator[PublishedFile]:
    """Register the numbers that papers report for GPTQ."""
    yield PublishedFile(Path(__file__).parent / "published" / "gptq.json", "GPTQ as a baseline on OPT and LLaMA")
