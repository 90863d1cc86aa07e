"""Structural search: how many columns of a block are salient, and where the rest is split by magnitude."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**18
SPLIT_TENSORS = 16


def rows_at_a_time(candidates: int, values: Tensor) -> int:
    """Return how many rows to work on at a time, all candidates together.

    A chunk stays in a core's cache and is no larger than the block itself, so that small layers need little memory too.
    """
    return max(1, min(CHUNK_ELEMENTS, values.numel()) // (candidates * max(1, values.shape[1])))


def best_column_count(target: Tensor, counts: Tensor, order: Literal[1, 2], mean_shift: bool) -> int:
    """Return the number of leading columns whose separate binarization leaves the least squared error.

    Binarizing m weights of a row explains m * (mu^2 + alpha^2) of their sum of squares, with mu their mean (0 without
    shift) and alpha the mean of |w - mu|; the second order does the same with the residual. What is explained is
    summed over rows and over both parts, for every candidate at once (BiLLM, eq. 5 and algorithm 2).

    Args:
        target: float32 [out, columns]; most salient columns first.
        counts: The candidates, int64 [candidates], none above the number of columns.
        order: Order of the binarization of both parts: 1 in the paper, 2 in the authors' code.
        mean_shift: Whether the mean is subtracted first.
    """
    columns = target.shape[1]
    salient = counts.unsqueeze(1) > torch.arange(columns, device=target.device)  # [candidates, columns]
    parts = torch.stack([salient, ~salient], 2).float()  # [candidates, columns, 2]
    sizes = parts.sum(1, keepdim=True)  # [candidates, 1, 2]
    explained = torch.zeros(len(counts), dtype=torch.float64, device=target.device)
    for chunk in torch.split(target, rows_at_a_time(len(counts), target)):
        explained += _explained(chunk, salient.unsqueeze(1), parts, sizes, order, mean_shift)
    return int(counts[int(explained.argmax())])


def _explained(chunk: Tensor, salient: Tensor, parts: Tensor, sizes: Tensor, order: int, mean_shift: bool) -> Tensor:
    """Return the explained sum of squares of a chunk [rows, columns], float64 [candidates]."""
    safe = sizes.clamp_min(1)

    def averages(values: Tensor) -> Tensor:
        return (values @ parts) / safe  # [candidates, rows, 2]

    def of_each(values: Tensor) -> Tensor:
        return torch.where(salient, values[..., :1], values[..., 1:])  # [candidates, rows, columns]

    rest = chunk.expand(len(parts), -1, -1)  # [candidates, rows, columns]
    total = chunk.new_zeros(len(parts), len(chunk), 2)
    for level in range(order):
        if mean_shift:
            mean = averages(rest)
            total += mean.square()
            rest = rest - of_each(mean)
        alpha = averages(rest.abs())
        total += alpha.square()
        if level + 1 < order:
            rest = rest - of_each(alpha).mul_(rest.sign())
    return (total * sizes).sum((1, 2), dtype=torch.float64)


def best_break_point(values: Tensor, candidates: Tensor, mean_shift: bool) -> float:
    """Return the break-point that leaves the least squared error when both sides are binarized apart, row by row.

    Rows are sorted once; the sums over |w| < p, over the rest, and over what lies below their means follow from
    prefix sums, for every candidate at once (BiLLM, eqs. 11 to 13).

    Args:
        values: float32 [out, columns], salient columns left out.
        candidates: float32 [candidates].
        mean_shift: Whether the mean is subtracted first.
    """
    explained = torch.zeros(len(candidates), dtype=torch.float64, device=values.device)
    rows = max(1, min(8 * CHUNK_ELEMENTS, values.numel()) // (SPLIT_TENSORS * len(candidates)))
    for chunk in torch.split(values, rows):
        explained += _explained_by_split(chunk.double().sort(1).values, candidates.double(), mean_shift)
    return float(candidates[int(explained.argmax())])


def _explained_by_split(ordered: Tensor, candidates: Tensor, mean_shift: bool) -> Tensor:
    """Return the explained sum of squares of rows sorted by value, float64 [rows, columns], for each candidate."""
    rows, columns = ordered.shape
    sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))  # [rows, columns + 1]
    bounds = candidates.expand(rows, -1).contiguous()  # [rows, candidates]
    low = torch.searchsorted(ordered, -bounds, right=True)
    high = torch.searchsorted(ordered, bounds).maximum(low)
    inner_size, inner_sum = high - low, sums.gather(1, high) - sums.gather(1, low)
    outer_size, outer_sum = columns - inner_size, sums[:, -1:] - inner_sum

    def mean(total: Tensor, size: Tensor) -> Tensor:
        return total / size.clamp_min(1) if mean_shift else torch.zeros_like(total)

    inner_mean, outer_mean = mean(inner_sum, inner_size), mean(outer_sum, outer_size)
    place = torch.searchsorted(ordered, inner_mean).maximum(low).minimum(high)
    below_sum, below_size = sums.gather(1, place) - sums.gather(1, low), place - low
    inner = _energy(inner_sum, inner_size, inner_mean, below_sum, below_size)
    place = torch.searchsorted(ordered, outer_mean)
    before, after = place.minimum(low), place.maximum(high)
    below_sum = sums.gather(1, before) + sums.gather(1, after) - sums.gather(1, high)
    outer = _energy(outer_sum, outer_size, outer_mean, below_sum, before + after - high)
    return (inner + outer).sum(0)


def _energy(total: Tensor, size: Tensor, mean: Tensor, below_sum: Tensor, below_size: Tensor) -> Tensor:
    """Return size * (mean^2 + alpha^2), with alpha the mean distance from the mean, from sums below the mean."""
    distance = total - 2 * below_sum + (2 * below_size - size) * mean
    return size * mean.square() + distance.square() / size.clamp_min(1)


def break_point_candidates(values: Tensor, hidden: int, kind: Literal["max-fraction", "percentile"]) -> Tensor:
    """Return the candidates for the break-point, float32.

    The paper tries 0.1, 0.2, ..., 0.9 of the largest magnitude; the authors' code 81 quantiles from 0.10 to 0.90 of
    the magnitudes of the whole block with its salient columns set to zero, whose zeros count.

    Args:
        values: float32 [out, columns], salient columns left out.
        hidden: Number of weights in the salient columns.
        kind: Which of the two.
    """
    magnitudes = values.abs().flatten()
    if kind == "max-fraction":
        return torch.linspace(0.1, 0.9, 9, device=values.device) * magnitudes.max()
    ordered = torch.cat([magnitudes.new_zeros(hidden), magnitudes.sort().values])
    places = torch.linspace(0.10, 0.90, 81, dtype=torch.float64, device=values.device) * (len(ordered) - 1)
    below = places.long()
    above = (below + 1).clamp_max(len(ordered) - 1)
    return torch.lerp(ordered[below].double(), ordered[above].double(), places - below).float()
