"""The step and shift of each group before any training: from its extremes, or of least squared error."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lowbit_baselines.learned_grid import LearnedGrid

# What is left of the distance from a group's mean to either of its ends, as the search tries it.
END_SHARES = (1.0, 0.8, 0.65, 0.5, 0.37, 0.25, 0.16)

Fit = tuple[Tensor, Tensor]


def min_max(groups: Tensor, grid: LearnedGrid) -> Fit:
    """Return step and shift [..., 1] of the grid over the whole range of groups [..., columns], not rounded.

    The range of an integer zero point includes 0, as that of round to nearest does.
    """
    lowest, highest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if grid.zero_point == "integer":
        lowest, highest = lowest.clamp_max(0), highest.clamp_min(0)
    return _grid_over(lowest, highest, grid)


def least_error(groups: Tensor, grid: LearnedGrid, iterations: int) -> Fit:
    """Return step and shift [..., 1] of nearly least squared error, not rounded.

    A search over both ends of the range, then alternating least squares: nearest codes for a step and an offset, the
    best step and offset for the codes (the step alone under an integer zero point).

    Args:
        groups: [..., columns].
        grid: The grid; its stored dtype does not matter.
        iterations: Most rounds of alternating least squares.
    """
    grid = replace(grid, scale_dtype=torch.float32)
    unit = groups.abs().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    values = groups / unit
    # Sums are exact enough only for weights beside zero.
    centre = torch.zeros_like(unit) if grid.zero_point == "integer" else values.mean(-1, keepdim=True)
    values.sub_(centre)
    steps, shifts = _refined(values, grid, *_search(values, grid), iterations)
    if grid.zero_point == "integer":
        return steps * unit, shifts
    return steps * unit, (shifts + centre) * unit


def better_fit(groups: Tensor, grid: LearnedGrid, first: Fit, second: Fit) -> Fit:
    """Return of two fits the one of less squared error once they are stored, group by group; the first of equals."""
    unit = groups.abs().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    errors = []
    for fit in (first, second):
        stored = grid.stored(*fit)
        difference = grid.levels(grid.codes(groups, *stored), *stored).sub_(groups).div_(unit)
        errors.append(difference.square_().sum(-1, keepdim=True))
    return _where(errors[1] < errors[0], second, first)


def _grid_over(lowest: Tensor, highest: Tensor, grid: LearnedGrid) -> Fit:
    # Dividing before the difference keeps the range of float32's largest numbers finite.
    steps = highest / grid.largest_code - lowest / grid.largest_code
    if grid.zero_point == "float":
        return steps, lowest
    ratio = torch.where(steps > 0, -lowest / steps, 0)
    return steps, ratio.round().clamp(0, grid.largest_code)


def _search(values: Tensor, grid: LearnedGrid) -> Fit:
    """Return the best grid over ranges whose two ends are drawn in towards zero independently."""
    lowest, highest = values.amin(-1, keepdim=True).clamp_max(0), values.amax(-1, keepdim=True).clamp_min(0)
    best = _grid_over(lowest, highest, grid)
    least = _error(values, grid, best)
    for low_share in END_SHARES:
        for high_share in END_SHARES:
            fit = _grid_over(lowest * low_share, highest * high_share, grid)
            error = _error(values, grid, fit)
            best, least = _where(error < least, fit, best), torch.minimum(error, least)
    return best


def _refined(values: Tensor, grid: LearnedGrid, steps: Tensor, shifts: Tensor, iterations: int) -> Fit:
    """Alternate between codes and their least squares until no group gains; a group keeps the best that it had."""
    best = fit = (steps, shifts)
    least = _error(values, grid, best)
    for _ in range(iterations):
        fit = _least_squares(values, grid, grid.codes(values, *fit), fit)
        error = _error(values, grid, fit)
        gains = error < least
        best, least = _where(gains, fit, best), torch.minimum(error, least)
        if not bool(gains.any()):
            break
    return best


def _least_squares(values: Tensor, grid: LearnedGrid, codes: Tensor, fit: Fit) -> Fit:
    """Return the best step (and offset) for codes; codes that are all equal say nothing about the step."""
    steps, shifts = fit
    if grid.zero_point == "integer":
        codes = codes - shifts
        squares = codes.square().sum(-1, keepdim=True)
        return torch.where(squares > 0, (codes * values).sum(-1, keepdim=True) / squares, steps), shifts
    mean_code, mean_value = codes.mean(-1, keepdim=True), values.mean(-1, keepdim=True)
    deviations = codes - mean_code
    squares = deviations.square().sum(-1, keepdim=True)
    steps = torch.where(squares > 1e-6, (deviations * values).sum(-1, keepdim=True) / squares, steps)
    return steps, mean_value - steps * mean_code


def _error(values: Tensor, grid: LearnedGrid, fit: Fit) -> Tensor:
    """Return the squared error of each group, [..., 1]."""
    return grid.levels(grid.codes(values, *fit), *fit).sub_(values).square_().sum(-1, keepdim=True)


def _where(condition: Tensor, first: Fit, second: Fit) -> Fit:
    return torch.where(condition, first[0], second[0]), torch.where(condition, first[1], second[1])
