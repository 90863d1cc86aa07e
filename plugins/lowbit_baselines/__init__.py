"""Baselines: the unquantized parent, round to nearest, GPTQ, and learned-step quantization."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowbit import Method, PublishedFile, QuantizedWeight, WeightQuantizer, hookimpl, training_presets
from lowbit_baselines.affine import AffineWeight
from lowbit_baselines.gptq import GPTQ
from lowbit_baselines.learned_step import LearnedStep
from lowbit_baselines.round_to_nearest import RoundToNearest
from lowbit_baselines.uniform import OrderedUniformWeight, UniformWeight

__all__ = ["GPTQ", "AffineWeight", "LearnedStep", "OrderedUniformWeight", "RoundToNearest", "UniformWeight"]


@hookimpl
def lowbit_weight_quantizers() -> Iterator[type[WeightQuantizer]]:
    """Register round to nearest, GPTQ and learned-step quantization."""
    yield RoundToNearest
    yield GPTQ
    yield LearnedStep


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register the uniform formats."""
    yield UniformWeight
    yield OrderedUniformWeight
    yield AffineWeight


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
    yield Method(
        "lsq",
        quantizer="lsq",
        description="learned-step quantization, 2 bits, groups of 64: step, offset and weights trained",
        presets=training_presets(loss="kl"),
        preset="quick",
    )
    yield Method(
        "lsq-ptq",
        quantizer="lsq",
        description="learned-step quantization before training: steps and offsets of least error, groups of 64",
    )


@hookimpl
def lowbit_published_results() -> Iterator[PublishedFile]:
    """Register the numbers that papers report for GPTQ."""
    yield PublishedFile(Path(__file__).parent / "published" / "gptq.json", "GPTQ as a baseline on OPT and LLaMA")
