"""Exact rescaling by powers of two, so that squares of weights neither overflow nor vanish in float32."""

from __future__ import annotations

import math

from torch import Tensor

LARGEST_EXPONENT = 126


def unit_scale(values: Tensor) -> float:
    """Return the power of two by which dividing brings the largest magnitude into [1, 2), exactly.

    Args:
        values: float32, any shape; finite.

    Returns:
        A power of two within float32's normal range; 1 for zeros and for no values at all.
    """
    largest = float(values.abs().amax()) if values.numel() else 0.0
    if largest == 0.0:
        return 1.0
    exponent = math.frexp(largest)[1] - 1
    return math.ldexp(1.0, max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, exponent)))
