"""Mean and scale of the binarized weights of each row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowbit_pbllm.chunks import column_chunks

Statistics = Literal["masked", "biased"]


def binary_statistics(columns: Tensor, salient: Tensor, kind: Statistics) -> tuple[Tensor, Tensor]:
    """Return the mean and the scale of each row's binarized weights (PB-LLM, section 3.3, equations 6 to 9).

    `masked`: the mean of the n binarized weights and the mean of their |w - mean|, the scale of least squared error
    (equation 9). `biased`: salient weights are counted as zeros, so that both means run over all columns and each
    salient weight adds |mean| to the scale's sum. Sums are float64.

    Args:
        columns: One group of columns of the weight, transposed, float32 [columns, out].
        salient: bool [columns, out].
        kind: Which of the two.

    Returns:
        Mean and scale, float32 [out] each; 0 for a row without binarized weights.
    """
    everything = kind == "biased"
    sums = torch.zeros(columns.shape[1], dtype=torch.float64, device=columns.device)
    counts = torch.zeros_like(sums)
    for part, mask in column_chunks(columns, salient):
        sums += part.masked_fill(mask, 0).sum(0, dtype=torch.float64)
        counts += len(part) if everything else len(part) - mask.sum(0)
    counts.clamp_min_(1)
    means = (sums / counts).float()
    deviations = torch.zeros_like(sums)
    for part, mask in column_chunks(columns, salient):
        if everything:
            distance = (part.masked_fill(mask, 0) - means).abs_()
        else:
            distance = (part - means).abs_().masked_fill_(mask, 0)
        deviations += distance.sum(0, dtype=torch.float64)
    return means, (deviations / counts).float()
