"""Integer codes of few bits as bit planes."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_BITS = 3
"""Codes of more bits have more planes than kernels for bit planes take."""


def code_planes(codes: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Return the bits of codes, lowest first, as `bits` planes, bool [out, in].

    Args:
        codes: Integers below 2^bits, uint8 [out, in].
        bits: Bits a code.
    """
    return tuple((codes & (1 << bit)) != 0 for bit in range(bits))


def bit_scales(scales: Tensor, bits: int) -> Tensor:
    """Return what each bit of a code counts, float32 [bits, out, groups].

    Args:
        scales: Step of the grid, [out, groups].
        bits: Bits a code.
    """
    return torch.stack([scales.float() * 2.0**bit for bit in range(bits)])
