"""Which weights are salient: the largest |w| / d of a matrix or of a group of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from lowbit_pbllm.chunks import column_chunks

Selection = Literal["exact", "threshold"]
Chunks = Callable[[], Iterator[Tensor]]

DIGIT_BITS = 11  # three digits hold the 31 bits of a pattern without its sign


def select_salient(
    columns: Tensor, denominators: Tensor, low_frac: float, group_size: int, selection: Selection
) -> Tensor:
    """Return which weights are salient, bool [in, out]; each group of columns has its own threshold.

    Weights are ranked by |w| / d, which orders them as w^2 / d^2 does and has no square to overflow or vanish.
    `exact` leaves exactly round(low_frac * n) of a group's n weights to binarization; of weights that rank equal the
    first ones, column by column. `threshold` leaves all weights up to element number int(low_frac * n), counted from 0,
    of the ascending order, that one and its equals included: at least one weight even for `low_frac` 0.

    Args:
        columns: The weight transposed, float32 [in, out].
        denominators: d, float32 [in], positive.
        low_frac: Share of weights to binarize, 0 to 1.
        group_size: Columns a group, or -1 for all.
        selection: Which of the two rules.
    """
    salient = torch.empty(columns.shape, dtype=torch.bool, device=columns.device)
    size = len(columns) if group_size == -1 else group_size
    parts = (torch.split(tensor, size) for tensor in (columns, denominators.unsqueeze(1), salient))
    for weights, divisors, chosen in zip(*parts, strict=True):
        _select(weights, divisors, chosen, low_frac, selection)
    return salient


def kth_smallest(chunks: Chunks, index: int) -> tuple[Tensor, int]:
    """Return element number `index`, from 0, of the ascending order, and how many elements are smaller than it.

    Non-negative floating-point numbers rank as their bit patterns do, so counting the patterns by their leading bits,
    then those that share these by the next ones, finds the element without a sorted or even a whole copy.

    Args:
        chunks: Called for each pass; yields the elements, float32 of any shape, none negative and none NaN.
        index: Below the number of elements.
    """
    prefix = below = 0
    for shift in (2 * DIGIT_BITS, DIGIT_BITS, 0):
        counts = sum(_counts(part.contiguous().view(torch.int32), prefix, shift) for part in chunks())
        assert isinstance(counts, Tensor)
        ends = counts.cumsum(0)
        digit = int(torch.searchsorted(ends, index - below, right=True))
        prefix = prefix << DIGIT_BITS | digit
        below += int(ends[digit] - counts[digit])
    return torch.tensor(prefix, dtype=torch.int32).view(torch.float32), below


def _counts(patterns: Tensor, prefix: int, shift: int) -> Tensor:
    """Count the patterns that begin with `prefix` by the digit that follows it, int64 [2^DIGIT_BITS]."""
    digits = patterns >> shift
    kept = digits[digits >> DIGIT_BITS == prefix] if shift < 2 * DIGIT_BITS else digits.flatten()
    return torch.bincount(kept & 2**DIGIT_BITS - 1, minlength=2**DIGIT_BITS)


def _select(weights: Tensor, divisors: Tensor, chosen: Tensor, low_frac: float, selection: Selection) -> None:
    """Fill `chosen`, bool [columns, out], for one group of columns."""

    def chunks() -> Iterator[Tensor]:
        yield from (part.abs() / divisor for part, divisor in column_chunks(weights, divisors))

    total = weights.numel()
    wanted = round(low_frac * total)
    if selection == "exact" and wanted == 0:
        chosen.fill_(True)
        return
    index = wanted - 1 if selection == "exact" else min(int(total * low_frac), total - 1)
    threshold, below = kth_smallest(chunks, index)
    threshold = threshold.to(weights.device)
    spare = wanted - below  # weights equal to the threshold that are binarized
    for saliency, (part,) in zip(chunks(), column_chunks(chosen), strict=True):
        torch.gt(saliency, threshold, out=part)
        if selection == "exact":
            equal = (saliency == threshold).flatten().nonzero().flatten()
            part.view(-1)[equal[max(spare, 0) :]] = True
            spare -= len(equal)
