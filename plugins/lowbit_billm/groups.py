"""Searches that ARB-LLM adds to BiLLM's: groups inside salient columns, and a break-point weighted by the inputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowbit import unit_scale
from lowbit_billm.alternating import refine_second
from lowbit_billm.refinement import Refinement, plus_minus
from lowbit_billm.search import break_point_candidates, rows_at_a_time
from lowbit_billm.zones import Zones

CandidateKind = Literal["max-fraction", "percentile"]


def salient_groups(zones: Zones, kind: CandidateKind, mean_shift: bool) -> Tensor:
    """Return which weights of the salient columns form their second group, bool [out, salient].

    The column-group bitmap (ARB-LLM, section 3.5) splits salient columns by magnitude too. The break-point is the one
    that leaves the least squared error when both sides are binarized in closed form to the second order; quantiles
    are those of magnitudes above 0. The paper does not say how it is found [unverified]; the code does this.

    Args:
        zones: The block's zones.
        kind: Candidates for the break-point.
        mean_shift: Whether the search subtracts means.
    """
    values = zones.target[:, zones.salient]
    values = values / unit_scale(values)
    used = values[values != 0]
    if not used.numel():
        return torch.zeros_like(values, dtype=torch.bool)
    candidates = break_point_candidates(used, 0, kind)
    errors = torch.zeros(len(candidates), dtype=torch.float64, device=values.device)
    for rows in torch.split(values, rows_at_a_time(len(candidates), values)):
        errors += _split_residual(rows, candidates, 2, mean_shift).square_().sum((1, 2), dtype=torch.float64)
    return values.abs() >= candidates[int(errors.argmin())]


def calibrated_split(zones: Zones, moments: Tensor, kind: CandidateKind, mean_shift: bool, how: Refinement) -> Tensor:
    """Return which weights outside salient columns are sparse, bool [out, columns], by the error Tr(R S R^T).

    R is the error of the whole block of what the searches work on: salient columns by second-order ARB, both sides of
    the break-point in closed form (code of ARB-X; the paper does not say so).

    Args:
        zones: The block's zones.
        moments: S, float32 [columns, columns].
        kind: Candidates for the break-point.
        mean_shift: Whether closed-form binarization subtracts means.
        how: Options of ARB.
    """
    rest = ~zones.salient
    sparse = torch.zeros_like(zones.sparse)
    if not bool(rest.any()):
        return sparse
    target = zones.target / unit_scale(zones.target)
    products = moments / unit_scale(moments.diagonal())
    values, salient = target[:, rest], target[:, zones.salient]
    pull = 2 * (_residual_of_second(salient, how) @ products[zones.salient][:, rest])  # [out, rest]
    within = products[rest][:, rest]
    candidates = break_point_candidates(values, salient.numel(), kind)
    errors = torch.zeros(len(candidates), dtype=torch.float64, device=values.device)
    size = rows_at_a_time(len(candidates), values)
    for rows, pulled in zip(torch.split(values, size), torch.split(pull, size), strict=True):
        residual = _split_residual(rows, candidates, 1, mean_shift)  # [candidates, rows, rest]
        errors += (residual @ within).add_(pulled).mul_(residual).sum((1, 2), dtype=torch.float64)
    sparse[:, rest] = values.abs() >= candidates[int(errors.argmin())]
    return sparse


def _residual_of_second(values: Tensor, how: Refinement) -> Tensor:
    mean, first, second, signs = refine_second(values, torch.ones_like(values, dtype=torch.bool), how)
    signed = plus_minus(signs) * torch.stack([first, second]).unsqueeze(2)
    return values - mean.unsqueeze(1) - signed.sum(0)


def _split_residual(values: Tensor, candidates: Tensor, order: int, mean_shift: bool) -> Tensor:
    """Return what closed-form binarization of both sides of every break-point leaves, [candidates, rows, columns]."""
    high = values.abs() >= candidates.view(-1, 1, 1)
    members = high.float()
    above = members.sum(2, keepdim=True)
    sizes = above.clamp_min(1), (values.shape[1] - above).clamp_min(1)

    def means(of: Tensor) -> Tensor:
        upper = (of * members).sum(2, keepdim=True)
        lower = of.sum(2, keepdim=True) - upper
        return torch.where(high, upper / sizes[0], lower / sizes[1])

    residual = values.expand(high.shape)
    for _ in range(order):
        if mean_shift:
            residual = residual - means(residual)
        residual = residual - means(residual.abs()).mul_(residual.sign())
    return residual
