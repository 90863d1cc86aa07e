"""Baselines: the unquantized parent and round to nearest."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit import Method, QuantizedWeight, WeightQuantizer, hookimpl
from lowbit_baselines.round_to_nearest import RoundToNearest
from lowbit_baselines.uniform import UniformWeight

__all__ = ["RoundToNearest", "UniformWeight"]


@hookimpl
def lowbit_weight_quantizers() -> Iterator[type[WeightQuantizer]]:
    """Register round to nearest."""
    yield RoundToNearest


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register the uniform-integer format."""
    yield UniformWeight


@hookimpl
def lowbit_methods() -> Iterator[Method]:
    """Register the baselines."""
    yield Method("none", quantizer=None, description="the parent itself, unquantized")
    yield Method("rtn", quantizer="rtn", description="round to nearest, 2 bits, groups of 64", default=True)
