"""Three levels for a group of weights: which scale, and which weight goes to which level."""

import torch
from lowbit import GroupSize, repeat_groups
from torch import Tensor

TWN_THRESHOLD = 0.7


def least_error_scales(groups: Tensor, lengths: Tensor) -> Tensor:
    """Return the scales of least squared error, float32 [rows, groups].

    With the k largest magnitudes of a group at the outer levels, the best scale is their mean S / k, and the squared
    error is that of zeros less S^2 / k: the best k is found by trying all of them.

    Args:
        groups: float32 [rows, groups, columns], filled up by zeros.
        lengths: Not used: zeros behind a shorter group change neither sum nor choice.
    """
    magnitudes = groups.abs()
    largest = magnitudes.amax(-1, keepdim=True)  # [rows, groups, 1]
    unit = torch.where(largest > 0, largest, 1)
    # Squares of very small or very large weights would leave float32's range.
    sums = (magnitudes / unit).sort(-1, descending=True).values.cumsum(-1)  # [rows, groups, columns]
    counts = torch.arange(1, groups.shape[-1] + 1, device=groups.device)
    best = (sums.square() / counts).argmax(-1, keepdim=True)  # [rows, groups, 1]
    return (sums.gather(-1, best) / counts[best] * unit).squeeze(-1)


def twn_scales(groups: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean magnitude of the weights above 0.7 times the group's mean magnitude (TWN, arXiv 1605.04711).

    Args:
        groups: float32 [rows, groups, columns], filled up by zeros.
        lengths: How many columns each group really has, int64 [groups].
    """
    magnitudes = groups.abs()
    threshold = TWN_THRESHOLD * magnitudes.sum(-1) / lengths  # [rows, groups]
    outer = magnitudes > threshold.unsqueeze(-1)
    return (magnitudes * outer).sum(-1) / outer.sum(-1).clamp_min(1)


def nearest_digits(weight: Tensor, scales: Tensor, group_size: GroupSize) -> Tensor:
    """Return 0, 1 or 2 for the nearest of -scale, 0 and scale, uint8 [out, in].

    Args:
        weight: float32 [out, in].
        scales: As they are stored, [out, groups].
        group_size: Columns a group, or -1 for whole rows.
    """
    # In a group whose scale is zero every weight has the middle digit.
    thresholds = torch.where(scales > 0, scales.float() / 2, torch.inf)  # [out, groups]
    half = repeat_groups(thresholds, group_size, weight.shape[1])  # [out, in]
    return 1 + (weight > half).to(torch.uint8) - (weight < -half).to(torch.uint8)
