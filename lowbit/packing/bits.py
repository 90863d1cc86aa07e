"""Bit packing: rows of k-bit integers to rows of bytes, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_length(length: int, width: int) -> int:
    """Return the bytes that a row of `length` elements of `width` bits takes; every row starts on a byte."""
    return -(-length * width // 8)


def pack_bits(values: Tensor, width: int = 1) -> Tensor:
    """Pack unsigned integers along the last dimension, least significant bit first, without gaps.

    Element j of a row occupies bits j * width to (j + 1) * width - 1 of the row; bit i lies in byte i // 8 at position
    i % 8. The last byte of a row is filled with zeros.

    Args:
        values: bool or uint8 [..., length], each below 2^width.
        width: Bits an element, 1 to 8.

    Returns:
        uint8 [..., ceil(length * width / 8)].

    Raises:
        ValueError: The width is not between 1 and 8.
    """
    _check_width(width)
    *outer, length = values.shape
    shifts = torch.arange(width, device=values.device, dtype=torch.uint8)
    bits = (values.to(torch.uint8).unsqueeze(-1) >> shifts) & 1  # [..., length, width]
    bits = bits.reshape(*outer, length * width)
    size = packed_length(length, width)
    bits = torch.nn.functional.pad(bits, (0, size * 8 - length * width)).reshape(*outer, size, 8)  # [..., bytes, 8]
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=values.device)
    return (bits * places).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, length: int, width: int = 1) -> Tensor:
    """Undo `pack_bits`.

    Args:
        packed: uint8 [..., ceil(length * width / 8)].
        length: Elements a row.
        width: Bits an element, 1 to 8.

    Returns:
        uint8 [..., length].

    Raises:
        ValueError: The width is not between 1 and 8, or a row has too few bytes.
    """
    _check_width(width)
    *outer, size = packed.shape
    if size < packed_length(length, width):
        raise ValueError(f"{length} elements of {width} bits take {packed_length(length, width)} bytes, not {size}")
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    bits = (packed.unsqueeze(-1) >> shifts) & 1  # [..., bytes, 8]
    bits = bits.reshape(*outer, size * 8)[..., : length * width].reshape(*outer, length, width)
    places = torch.arange(width, device=packed.device, dtype=torch.uint8)
    return (bits << places).sum(-1, dtype=torch.uint8)


def _check_width(width: int) -> None:
    if not 1 <= width <= 8:
        raise ValueError(f"an element has 1 to 8 bits, not {width}")
