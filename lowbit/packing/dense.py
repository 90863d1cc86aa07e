"""Registers the format that the core brings: plain dequantized weights."""

from __future__ import annotations

from collections.abc import Iterator

from lowbit.contracts import DenseWeight, QuantizedWeight
from lowbit.hookspecs import hookimpl


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register `DenseWeight`, so that a quantizer without a format of its own can be stored and read again."""
    yield DenseWeight
