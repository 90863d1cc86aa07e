"""A sparse mask as gaps: how many positions lie before each salient weight, in codes of few bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

GAP_BITS = range(1, 9)
AT_A_TIME = 2**15  # positions or entries; their numbers take eight bytes each


def smallest_gap_bits(salient: Tensor) -> tuple[int, int]:
    """Return the width of a code with which a mask takes the fewest bytes, and those bytes.

    Args:
        salient: bool [out, in].
    """
    entries = dict.fromkeys(GAP_BITS, 0)
    for gaps in _gaps(salient):
        for bits in GAP_BITS:
            entries[bits] += gaps.numel() + int((gaps // _escape(bits)).sum())
    sizes = {bits: -(-count * bits // 8) for bits, count in entries.items()}
    best = min(GAP_BITS, key=sizes.__getitem__)
    return best, sizes[best]


def encode_gaps(salient: Tensor, bits: int) -> Tensor:
    """Return the gaps of a mask in row-major order, uint8 [entries], each below 2^bits.

    A code g below 2^bits - 1 skips g positions and marks the one after them; the largest code skips 2^bits - 1
    positions and marks none. What follows the last salient weight is left out.

    Args:
        salient: bool [out, in].
        bits: Width of a code, 1 to 8.
    """
    escape = _escape(bits)
    parts = []
    for gaps in _gaps(salient):
        ends = (gaps // escape + 1).cumsum(0)
        codes = torch.full((int(ends[-1]),), escape, dtype=torch.uint8, device=salient.device)
        codes[ends - 1] = (gaps % escape).to(torch.uint8)
        parts.append(codes)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=salient.device)


def decode_gaps(codes: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """Undo `encode_gaps`.

    Args:
        codes: uint8 [entries].
        bits: Width of a code, 1 to 8.
        shape: Rows and columns of the mask.

    Returns:
        bool [out, in].
    """
    salient = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=codes.device)
    passed = 0
    for part in torch.split(codes, AT_A_TIME):
        marks = part != _escape(bits)
        ends = (part + marks.to(torch.uint8)).cumsum(0) + passed  # positions passed, a mark's own included
        salient[ends[marks] - 1] = True
        passed = int(ends[-1]) if len(ends) else 0
    return salient.reshape(shape)


def _escape(bits: int) -> int:
    return int(2**bits - 1)


def _gaps(salient: Tensor) -> Iterator[Tensor]:
    """Yield the positions skipped before each salient weight, int64, for a stretch of positions at a time."""
    offset, last = 0, -1
    for stretch in torch.split(salient.flatten(), AT_A_TIME):
        positions = stretch.nonzero().flatten().add_(offset)
        offset += stretch.numel()
        if len(positions):
            yield torch.diff(positions, prepend=positions.new_tensor([last])).sub_(1)
            last = int(positions[-1])
