"""Which weights are salient: the largest |w| / d of a matrix or of a group of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from lowbit import row_chunks

Selection = Literal["exact", "threshold"]
Chunks = Callable[[], Iterator[Tensor]]

HALF_BITS = 16


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

    Non-negative floating-point numbers rank as their bit patterns do, so counting the upper and then the lower halves
    of the patterns finds the element in two passes, without a sorted or even a whole copy.

    Args:
        chunks: Called for each pass; yields the elements, float32 of any shape, none negative and none NaN.
        index: Below the number of elements.
    """
    upper, below = _counted((_patterns(part) >> HALF_BITS for part in chunks()), index)
    mask = 2**HALF_BITS - 1
    within = (bits[bits >> HALF_BITS == upper] & mask for bits in map(_patterns, chunks()))
    lower, below_within = _counted(within, index - below)
    pattern = torch.tensor(upper << HALF_BITS | lower, dtype=torch.int32)
    return pattern.view(torch.float32), below + below_within


def _select(weights: Tensor, divisors: Tensor, chosen: Tensor, low_frac: float, selection: Selection) -> None:
    """Fill `chosen`, bool [columns, out], for one group of columns."""

    def chunks() -> Iterator[Tensor]:
        yield from (part.abs() / divisor for part, divisor in row_chunks(weights, divisors))

    total = weights.numel()
    wanted = round(low_frac * total)
    if selection == "exact" and wanted == 0:
        chosen.fill_(True)
        return
    index = wanted - 1 if selection == "exact" else min(int(total * low_frac), total - 1)
    threshold, below = kth_smallest(chunks, index)
    threshold = threshold.to(weights.device)
    spare = wanted - below  # weights equal to the threshold that are binarized
    for saliency, (part,) in zip(chunks(), row_chunks(chosen), strict=True):
        torch.gt(saliency, threshold, out=part)
        if selection == "exact":
            equal = (saliency == threshold).flatten().nonzero().flatten()
            part.view(-1)[equal[max(spare, 0) :]] = True
            spare -= len(equal)


def _patterns(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32).flatten()


def _counted(keys: Iterator[Tensor], index: int) -> tuple[int, int]:
    """Return key number `index` of the ascending order and how many are smaller; keys are int32 below 2^16."""
    counts = sum(torch.bincount(part, minlength=2**HALF_BITS) for part in keys)
    assert isinstance(counts, Tensor)
    ends = counts.cumsum(0)
    key = int(torch.searchsorted(ends, index, right=True))
    return key, int(ends[key] - counts[key])
