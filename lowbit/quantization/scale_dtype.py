"""The dtype in which scales are stored, decided before codes are chosen."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowbit.contracts.fields import SCALE_DTYPES

ScaleDtype = Literal["float16", "bfloat16", "float32"]


def storable_dtype(dtype: ScaleDtype, *scales: Tensor) -> torch.dtype:
    """Return `dtype`, or float32 where it would lose a scale to overflow or underflow.

    A scale is lost when it becomes infinite, or when a non-zero one falls below the smallest normal number, where
    relative precision ends.

    Args:
        dtype: The dtype that was asked for.
        *scales: float32 tensors of scales or means.
    """
    wanted = SCALE_DTYPES[dtype]
    limits = torch.finfo(wanted)
    for scale in scales:
        size = scale.abs()
        if bool(((size > limits.max) | ((size > 0) & (size < limits.tiny))).any()):
            return torch.float32
    return wanted
