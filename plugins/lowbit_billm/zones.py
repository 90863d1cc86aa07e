"""Which weights of a block are salient, concentrated or sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit import ColumnBlock, InverseFactor
from lowbit_billm.search import best_break_point, best_column_count, break_point_candidates

ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class Zones:
    """The division of a block.

    Args:
        salient: Salient columns, bool [columns].
        sparse: Weights beyond the break-point outside salient columns, bool [out, columns].
        target: What the searches worked on, float32 [out, columns].
    """

    salient: Tensor
    sparse: Tensor
    target: Tensor


def find_zones(block: ColumnBlock, factor: InverseFactor, config: Any, unit: float) -> Zones:
    """Search the salient columns and the break-point of a block (BiLLM, algorithm 2).

    Args:
        block: The block with its compensated weights.
        factor: The layer's inverse factor.
        config: Resolved options with `saliency`, `saliency_denominator`, `search_on`, `col_range`, `search_order`,
            `breakpoint` and `mean_shift`.
        unit: A power of two near the largest weight, so that squares stay within float32.
    """
    weight = block.weight / unit  # [out, columns]
    saliency = _saliency(weight, block, factor, config)
    target = saliency if config.search_on == "saliency" else weight
    salient = _salient_columns(target, saliency, config)
    rest = target[:, ~salient]
    sparse = torch.zeros_like(target, dtype=torch.bool)
    if rest.numel():
        candidates = break_point_candidates(rest, target.numel() - rest.numel(), config.breakpoint)
        limit = best_break_point(rest, candidates, config.mean_shift)
        sparse[:, ~salient] = rest.abs() >= limit
    return Zones(salient, sparse, target)


def _saliency(weight: Tensor, block: ColumnBlock, factor: InverseFactor, config: Any) -> Tensor:
    """Return the saliency of each weight, float32 [out, columns]; under `magnitude` the signed weight itself.

    The paper prints w^2 / ([H^-1]_jj)^2 (eq. 3). The code's w^2 / U_jj^2 is w^2 over the diagonal of the inverse
    Hessian of the columns from j on.
    """
    if config.saliency == "magnitude":
        return weight.contiguous()
    if config.saliency_denominator == "printed":
        denominator = _inverse_diagonal(factor, block)
    else:
        denominator = block.factor.diagonal()
    return weight.square().div_(denominator.square())


def _inverse_diagonal(factor: InverseFactor, block: ColumnBlock) -> Tensor:
    """Return the block's part of `factor.inverse_diagonal()` from its own columns of the factor alone."""
    rows = torch.split(factor.upper[:, block.start : block.stop], ROWS_AT_A_TIME)
    return torch.stack([part.square().sum(0) for part in rows]).sum(0)


def _salient_columns(target: Tensor, saliency: Tensor, config: Any) -> Tensor:
    columns = target.shape[1]
    order = saliency.abs().sum(0).argsort(descending=True, stable=True)
    fewest, most = (min(bound, columns) for bound in config.col_range)
    counts = torch.arange(fewest, most + 1, device=target.device)
    count = best_column_count(target[:, order], counts, config.search_order, config.mean_shift)
    salient = torch.zeros(columns, dtype=torch.bool, device=target.device)
    salient[order[:count]] = True
    return salient
