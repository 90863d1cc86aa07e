"""ARB-X (ARB-LLM, arXiv 2410.03129, section 3.3): means and scales that minimize the error of the layer's outputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowbit import row_chunks, unit_scale
from lowbit_billm import alternating
from lowbit_billm.refinement import BinaryGroup, Refinement, plus_minus

SMALLEST_SHARE = 1e-6
"""A direction with a smaller share of the inputs' energy than this is lost in float32's rounding of the moments."""


def binarize_calibrated(
    weight: Tensor, mask: Tensor, order: Literal[1, 2], moments: Tensor | None, how: Refinement
) -> BinaryGroup:
    """Binarize a group by ARB-X: ARB first, whose signs are kept, then mean and scales by the calibration inputs.

    Args:
        weight: float32 [out, columns], near 1 in magnitude.
        mask: The members, bool [out, columns].
        order: Number of signs a weight.
        moments: Sum of x x^T over the inputs, of any scale, float32 [columns, columns]; `None` leaves it at ARB.
        how: Options.
    """
    if moments is None or not weight.shape[1]:
        return alternating.binarize_alternating(weight, mask, order, how)
    if order == 1:
        mean, scale = alternating.refine_first(weight, mask, how)
        start, signs = torch.stack([mean, scale]), (weight >= mean.unsqueeze(1)).unsqueeze(0)
    else:
        *values, signs = alternating.refine_second(weight, mask, how)
        start = torch.stack(values)
    stored = how.stored(refine_calibrated(weight, mask, start, signs, moments, how))
    return BinaryGroup(stored[0], stored[1:], weight.new_zeros(0, weight.shape[1]), signs)


def refine_calibrated(
    weight: Tensor, mask: Tensor, start: Tensor, signs: Tensor, moments: Tensor, how: Refinement
) -> Tensor:
    """Return mean and scales [1 + order, out] that lower Tr(R S R^T), R the error of this group alone.

    In turn mu = 1^T S (W - alpha B)^T / (1^T S 1) and alpha = diag(B S (W - mu)^T) / diag(B S B^T), as in the paper
    and, with 1 the members of the group, in the code. All of it follows from the products of 1, B and W with S, so
    that no more than [out, columns] is held.

    Args:
        weight: float32 [out, columns].
        mask: bool [out, columns].
        start: Mean and scales, float32 [1 + order, out].
        signs: bool [order, out, columns].
        moments: S, float32 [columns, columns].
        how: Options.
    """
    products = (moments / unit_scale(moments.diagonal())).double()
    chunks = row_chunks(weight, mask, start.T, signs.transpose(0, 1))
    return torch.cat([_refine(rows, m, s, b, products, how) for rows, m, s, b in chunks], 1)


def _refine(weight: Tensor, mask: Tensor, start: Tensor, signs: Tensor, moments: Tensor, how: Refinement) -> Tensor:
    members = mask.double()
    target = weight * members
    basis = [members, *(plus_minus(sign) * members for sign in signs.unbind(1))]
    values = start.T.double()  # [1 + order, out]
    gram, projection = _products(basis, target, moments)
    floor = SMALLEST_SHARE * (members @ moments.diagonal())
    for _ in range(how.calibrated_iterations):
        new = values.clone()
        for k in range(len(basis)):
            own = gram[k, k]
            others = (gram[k] * new).sum(0) - own * new[k]
            known = own > floor
            new[k] = torch.where(known, (projection[k] - others) / torch.where(known, own, 1.0), new[k])
        if how.keep_best:
            new = torch.where(_error(new, gram, projection) <= _error(values, gram, projection), new, values)
        values = new
    return values.float()


def _products(basis: list[Tensor], target: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return v_k S v_l [k, l, out] and v_k S w [k, out] of every row."""
    weighted = [vector @ moments for vector in basis]
    gram = torch.stack([torch.stack([(left * right).sum(1) for right in basis]) for left in weighted])
    return gram, torch.stack([(left * target).sum(1) for left in weighted])


def _error(values: Tensor, gram: Tensor, projection: Tensor) -> Tensor:
    """Return the objective [out] without w S w, which stays the same."""
    return torch.einsum("ko,klo,lo->o", values, gram, values) - 2 * (values * projection).sum(0)
