"""Statistics of made-up layers, shared by the tests of error compensation."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit import LayerStatistics, StatisticsNeed


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics_of(inputs: Tensor) -> LayerStatistics:
    """Statistics of inputs [tokens, in], summed in float64."""
    hessian = (2 * inputs.double().T @ inputs.double() / len(inputs)).float()
    return LayerStatistics(len(inputs), hessian.diagonal() / 2, hessian)


def correlated_inputs(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs [tokens, in] whose columns share directions and differ in size."""
    mixing = torch.eye(columns) + 0.5 * gaussian(columns, columns, seed=seed + 1) / columns**0.5
    return gaussian(tokens, columns, seed=seed) @ mixing * (0.2 + gaussian(columns, seed=seed + 2).abs())


def output_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """tr(E H E^T), the squared error of the layer's outputs, in float64."""
    error = (weight - quantized).double()
    return float(((error @ hessian.double()) * error).sum())


def statistics_for(need: StatisticsNeed, columns: int) -> LayerStatistics | None:
    """Statistics of 256 correlated Gaussian tokens, as far as they are asked for."""
    if need is StatisticsNeed.NONE:
        return None
    generator = torch.Generator().manual_seed(99)
    mixing = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    tokens = torch.randn(256, columns, generator=generator) @ mixing
    second_moment = tokens.square().mean(0)
    hessian = 2 * tokens.T @ tokens / len(tokens) if need is StatisticsNeed.HESSIAN else None
    return LayerStatistics(len(tokens), second_moment, hessian)
