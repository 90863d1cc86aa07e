"""ARB, alternating refined binarization (ARB-LLM, arXiv 2410.03129, section 3.2): a mean and scales for each row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowbit import row_chunks
from lowbit_billm.binarize import masked_mean
from lowbit_billm.refinement import BinaryGroup, Refinement, nearest_signs, plus_minus


def binarize_alternating(weight: Tensor, mask: Tensor, order: Literal[1, 2], how: Refinement) -> BinaryGroup:
    """Binarize a group by ARB; means and scales are rounded before the signs are finally chosen.

    Args:
        weight: float32 [out, columns], near 1 in magnitude.
        mask: The members, bool [out, columns].
        order: Number of signs a weight.
        how: Options.
    """
    refine = refine_first if order == 1 else refine_second
    mean, *scales = how.stored(torch.stack(refine(weight, mask, how)[: 1 + order]))
    distance = weight - mean.unsqueeze(1)
    if order == 1:
        signs = (distance >= 0).unsqueeze(0)
    else:
        signs = nearest_signs(distance, *(scale.unsqueeze(1) for scale in scales))
    return BinaryGroup(mean, torch.stack(scales), weight.new_zeros(0, weight.shape[1]), signs)


def refine_first(weight: Tensor, mask: Tensor, how: Refinement) -> tuple[Tensor, Tensor]:
    """Return mean and scale [out] after alternating mu += mean(R), alpha = mean(B * (W - mu)), B = sign(W - mu).

    The scale never becomes negative: with m = mean(W - mu) and |m| <= mean|W - mu| an update gives
    mean|W - mu| - m * mean(B) + alpha * mean(B)^2. So B is at every time the best for mu and alpha, and each of the
    three steps can only lower the squared error.
    """
    parts = [_refine_first(rows, members, how) for rows, members in row_chunks(weight, mask)]
    mean, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean, scale


def _refine_first(weight: Tensor, mask: Tensor, how: Refinement) -> tuple[Tensor, Tensor]:
    mean = masked_mean(weight, mask).double()
    scale = masked_mean((weight - mean.float().unsqueeze(1)).abs(), mask).double()
    count = mask.sum(1).double()
    total = (weight * mask).sum(1).double()
    divisor = count.clamp_min(1)

    def signed_sums(mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of B and of B * W for B = sign(W - mean)."""
        above = (weight >= mean.float().unsqueeze(1)) & mask
        return 2 * above.sum(1).double() - count, 2 * (weight * above).sum(1).double() - total

    def error(mean: Tensor, scale: Tensor, balance: Tensor, signed: Tensor) -> Tensor:
        """Return the squared error without the sum of squares of W, which stays the same."""
        products = mean * total + scale * signed - scale * mean * balance
        return count * (mean.square() + scale.square()) - 2 * products

    balance, signed = signed_sums(mean)
    least = error(mean, scale, balance, signed)
    for _ in range(how.iterations):
        new_mean = (total - scale * balance) / divisor
        new_scale = (signed - new_mean * balance) / (divisor + how.epsilon)
        new_balance, new_signed = signed_sums(new_mean)
        if how.keep_best:
            found = error(new_mean, new_scale, new_balance, new_signed)
            better = found <= least
            old = (mean, scale, balance, signed, least)
            new = (new_mean, new_scale, new_balance, new_signed, found)
            mean, scale, balance, signed, least = _choose(better, new, old)
        else:
            mean, scale, balance, signed = new_mean, new_scale, new_balance, new_signed
    return mean.float(), scale.float()


def refine_second(weight: Tensor, mask: Tensor, how: Refinement) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, both scales [out] and both signs [2, out, columns] of second-order ARB.

    In turn mu += mean(R), alpha1 = mean(B1 * (W - mu - alpha2 B2)), alpha2 likewise, and (B1, B2) the nearest of the
    four sums. It starts from binarizing W, and then what is left, in closed form.
    """
    parts = [_refine_second(rows, members, how) for rows, members in row_chunks(weight, mask)]
    mean, scale1, scale2 = (torch.cat([part[i] for part in parts]) for i in range(3))
    return mean, scale1, scale2, torch.cat([part[3] for part in parts], 1)


def _refine_second(weight: Tensor, mask: Tensor, how: Refinement) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, scales, signs = closed_form_second(weight, mask)
    count = mask.sum(1).double()
    total = (weight * mask).sum(1).double()
    divisor = count.clamp_min(1)
    raised = divisor + how.epsilon
    sums = _sums(weight, mask, signs)
    least = _error(mean, scales, sums, count, total)
    for _ in range(how.iterations):
        balance, signed, overlap = sums
        new_mean = (total - (scales * balance).sum(0)) / divisor
        first = (signed[0] - new_mean * balance[0] - scales[1] * overlap) / raised
        second = (signed[1] - new_mean * balance[1] - first * overlap) / raised
        distance = weight - new_mean.float().unsqueeze(1)
        new_signs = nearest_signs(distance, first.float().unsqueeze(1), second.float().unsqueeze(1))
        new = (new_mean, torch.stack([first, second]), new_signs)
        new_sums = _sums(weight, mask, new_signs)
        if how.keep_best:
            found = _error(new[0], new[1], new_sums, count, total)
            better = found <= least
            mean, least = _choose(better, (new_mean, found), (mean, least))
            scales = torch.where(better, new[1], scales)
            signs = torch.where(better.unsqueeze(1), new_signs, signs)
            balance, signed, overlap = _choose(better, new_sums, sums)
            sums = (balance, signed, overlap)
        else:
            mean, scales, signs, sums = *new, new_sums
    return mean.float(), scales[0].float(), scales[1].float(), signs


def closed_form_second(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the means [out], scales [2, out] (both float64) and signs [2, out, columns]."""
    mean = weight.new_zeros(len(weight))
    residual, scales, signs = weight, [], []
    for _ in range(2):
        step = masked_mean(residual, mask)
        residual = residual - step.unsqueeze(1)
        sign = residual >= 0
        scale = masked_mean(residual.abs(), mask)
        residual = residual - plus_minus(sign) * scale.unsqueeze(1)
        mean = mean + step
        scales.append(scale)
        signs.append(sign)
    return mean.double(), torch.stack(scales).double(), torch.stack(signs)


def _sums(weight: Tensor, mask: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of B1 and B2 and of B1 * W and B2 * W [2, out], and of B1 * B2 [out], over members, float64."""
    signed = plus_minus(signs) * mask
    return signed.sum(2).double(), (signed * weight).sum(2).double(), (signed[0] * signed[1]).sum(1).double()


def _error(mean: Tensor, scales: Tensor, sums: tuple[Tensor, Tensor, Tensor], count: Tensor, total: Tensor) -> Tensor:
    """Return the squared error [out] without the sum of squares of W, which stays the same."""
    balance, signed, overlap = sums
    products = mean * total + (scales * signed).sum(0)
    crossed = (scales * balance).sum(0) * mean + scales[0] * scales[1] * overlap
    return count * (mean.square() + scales.square().sum(0)) + 2 * (crossed - products)


def _choose(better: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(better, n, o) for n, o in zip(new, old, strict=True))
