"""Matrices that every quantizer must survive, and what every quantized weight must hold to."""

from __future__ import annotations

import pytest

from lowbit import QuantizedWeight
from lowbit.testing import SHAPES, gaussian, packers_for, require_packs, special_weights, weight_difference

__all__ = [
    "SHAPES",
    "assert_packs",
    "assert_same",
    "each_shape",
    "each_special",
    "gaussian",
    "packers_for",
    "special_weights",
]

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
each_special = pytest.mark.parametrize("kind", list(special_weights()))


def assert_same(first: QuantizedWeight, second: QuantizedWeight) -> None:
    assert not weight_difference(first, second)


def assert_packs(quantized: QuantizedWeight) -> None:
    require_packs(quantized)
