"""The arithmetic of dual binarization: levels, codes and least-squares scales.

Everything here works on groups [rows, groups, group_size] in the plain orientation alpha2 < 0 < alpha1 + alpha2 <
alpha1, whose levels are alpha2, 0, alpha1 + alpha2 and alpha1. The mirrored orientation is the same on -w with
-alpha1 and -alpha2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def assign_codes(weight: Tensor, alpha1: Tensor, alpha2: Tensor) -> tuple[Tensor, Tensor]:
    """Choose b1 and b2 by the paper's two step functions, which round to the nearest level.

    b1 = H(w - (alpha1 + alpha2) / 2) and b2 = H(-(w - alpha1 * b1 - alpha2 / 2)) with H(x) = 1 for x >= 0. They are
    exactly nearest-level rounding as long as the levels keep their order. A group whose scales are zero gets zeros.

    Args:
        weight: [rows, groups, group_size], in the plain orientation.
        alpha1: [rows, groups, 1].
        alpha2: [rows, groups, 1].

    Returns:
        b1 and b2, bool, shaped like `weight`.
    """
    alive = alpha1 != 0
    plane1 = (weight >= (alpha1 + alpha2) / 2) & alive
    plane2 = (weight - alpha1 * plane1 <= alpha2 / 2) & alive
    return plane1, plane2


def is_ordered(alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """Say where alpha2 < 0 < alpha1 + alpha2 < alpha1 holds."""
    return (alpha2 < 0) & (alpha1 + alpha2 > 0)


def reconstruct(plane1: Tensor, plane2: Tensor, alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """Return alpha1 * b1 + alpha2 * b2."""
    return alpha1 * plane1 + alpha2 * plane2


def squared_error(weight: Tensor, plane1: Tensor, plane2: Tensor, alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """Return each group's squared error, [rows, groups, 1]."""
    return (weight - reconstruct(plane1, plane2, alpha1, alpha2)).square().sum(-1, keepdim=True)


def grid_search(weight: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Find the single scale s whose levels -s, 0, s, 2s give each group the smallest squared error.

    The candidates are fractions of the largest magnitude in the group, from 1/16 to 1; a half of it is the min-max
    scale, which is always among them.

    Args:
        weight: [rows, groups, group_size], in the plain orientation.
        candidates: How many scales to try.

    Returns:
        The best s and its squared error, each [rows, groups, 1].
    """
    largest = weight.abs().amax(-1, keepdim=True)  # [rows, groups, 1]
    best_scale = largest / 2
    best_error = torch.full_like(largest, torch.inf)
    for fraction in [0.5, *torch.linspace(1 / 16, 1, candidates - 1).tolist()]:
        scale = largest * fraction
        ratio = weight / scale.clamp_min(torch.finfo(weight.dtype).tiny)
        error = (ratio - ratio.round().clamp_(-1, 2)).square_().sum(-1, keepdim=True) * scale.square()
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale, best_error


def least_squares_scales(weight: Tensor, plane1: Tensor, plane2: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the 2 x 2 normal equations of min ||w - alpha1 * b1 - alpha2 * b2||^2 in each group.

    Where they are singular (a plane is empty, or both planes are equal) the result is NaN, which no order holds for.

    Args:
        weight: [rows, groups, group_size].
        plane1: bool, shaped like `weight`.
        plane2: bool, shaped like `weight`.

    Returns:
        alpha1 and alpha2, each [rows, groups, 1].
    """
    first, second = plane1.to(weight.dtype), plane2.to(weight.dtype)
    count1, count2 = first.sum(-1, keepdim=True), second.sum(-1, keepdim=True)
    both = (first * second).sum(-1, keepdim=True)
    sum1, sum2 = (first * weight).sum(-1, keepdim=True), (second * weight).sum(-1, keepdim=True)
    determinant = count1 * count2 - both.square()
    determinant = torch.where(determinant > 0, determinant, torch.nan)
    alpha1 = (count2 * sum1 - both * sum2) / determinant
    alpha2 = (count1 * sum2 - both * sum1) / determinant
    return alpha1, alpha2


def alternate(weight: Tensor, alpha1: Tensor, alpha2: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Alternate nearest-level codes and least-squares scales; no group's error ever rises.

    Where new scales would break the order of the levels, or do not lower the error, the old pair stays and the group is
    done; later rounds work on the other groups only.

    Args:
        weight: [rows, groups, group_size], in the plain orientation.
        alpha1: Start, [rows, groups, 1].
        alpha2: Start, [rows, groups, 1].
        iterations: The most rounds; it stops when nothing changes.

    Returns:
        alpha1, alpha2 and the squared error with nearest-level codes, each [rows, groups, 1].
    """
    shape = alpha1.shape
    active = weight.flatten(0, 1)  # [active groups, group_size]
    first, second = alpha1.reshape(-1, 1).clone(), alpha2.reshape(-1, 1).clone()  # [all groups, 1]
    plane1, plane2 = assign_codes(active, first, second)
    error = squared_error(active, plane1, plane2, first, second)  # [all groups, 1]
    places = torch.arange(len(error), device=weight.device)
    for _ in range(iterations):
        new1, new2 = least_squares_scales(active, plane1, plane2)
        usable = is_ordered(new1, new2)
        plane1, plane2 = assign_codes(active, new1, new2)
        new_error = squared_error(active, plane1, plane2, new1, new2)
        better = (usable & (new_error < error[places])).squeeze(-1)
        if not bool(better.any()):
            break
        places, active, plane1, plane2 = places[better], active[better], plane1[better], plane2[better]
        first[places], second[places], error[places] = new1[better], new2[better], new_error[better]
    return first.reshape(shape), second.reshape(shape), error.reshape(shape)
