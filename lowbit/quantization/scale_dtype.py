"""The dtype in which scales are stored, decided before codes are chosen."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowbit.contracts.fields import SCALE_DTYPES

ScaleDtype = Literal["float16", "bfloat16", "float32"]
LARGEST_RELATIVE_ERROR = 2**-8
NEGLIGIBLE_SHARE = 2**-12


def storable_dtype(dtype: ScaleDtype, *scales: Tensor, beside: Tensor | None = None) -> torch.dtype:
    """Return `dtype`, or float32 where it would lose a scale to overflow or underflow.

    A scale is lost when it becomes infinite, or when so little of it is left that rounding changes it by more than
    one part in 256, which is what bfloat16 does at worst. A mean near 0, or the second scale of a group of one weight,
    may lose its digits beside larger values: an error below one part in 4096 of what it stands beside is none.

    Args:
        dtype: The dtype that was asked for.
        *scales: float32 tensors of scales or means.
        beside: Magnitude of the weights that they make up, broadcasting against each of them.
    """
    negligible = 0.0 if beside is None else beside.abs() * NEGLIGIBLE_SHARE
    wanted = SCALE_DTYPES[dtype]
    for scale in scales:
        error = (scale.to(wanted).float() - scale).abs()
        if bool(((error > scale.abs() * LARGEST_RELATIVE_ERROR) & (error > negligible)).any()):
            return torch.float32
    return wanted
