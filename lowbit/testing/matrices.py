"""Matrices that every quantizer must survive, and statistics of inputs to go with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lowbit.contracts import LayerStatistics, StatisticsNeed

SHAPES: tuple[tuple[int, int], ...] = (
    *((1, 1), (5, 1), (1, 7), (3, 37), (8, 64), (7, 65), (4, 172), (2, 300)),
    *((33, 300), (2, 1030)),
)
"""Rows and columns that no group size divides, single ones and more than a tile of a kernel among them."""


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def special_weights() -> dict[str, Tensor]:
    """Return finite matrices that have broken quantizers before, by what is special about them."""
    mixed = gaussian(6, 70)
    mixed[0] = 0
    mixed[1] = 0.25
    mixed[2] = -0.25
    mixed[3, :64] = 0
    mixed[4, 5] = 1e4
    return {
        "zeros": torch.zeros(3, 40),
        "constant": torch.full((3, 40), 0.3),
        "negative": -gaussian(3, 40).abs() - 1,
        "mixed rows": mixed,
        "huge": gaussian(4, 64) * 1e6,
        "tiny": gaussian(4, 64) * 1e-9,
        "tiny beside ordinary": torch.cat([gaussian(2, 64), gaussian(2, 64) * 1e-7]),
        "two values": gaussian(4, 64).sign(),
        "signed zeros": -torch.zeros(2, 33),
        "values of float16": gaussian(4, 65).half().float(),
        "values of bfloat16": gaussian(4, 65).bfloat16().float(),
    }


def all_weights() -> Mapping[str, Tensor]:
    """Return normal matrices of every shape and the special ones, by the code that makes them."""
    shaped = {f"gaussian{shape}": gaussian(*shape) for shape in SHAPES}
    return shaped | {f"special_weights()[{kind!r}]": weight for kind, weight in special_weights().items()}


def statistics_for(need: StatisticsNeed, columns: int) -> LayerStatistics | None:
    """Return statistics of 256 correlated normal tokens, as far as they are asked for."""
    if need is StatisticsNeed.NONE:
        return None
    generator = torch.Generator().manual_seed(99)
    mixing = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    tokens = torch.randn(256, columns, generator=generator) @ mixing
    second_moment = tokens.square().mean(0)
    hessian = 2 * tokens.T @ tokens / len(tokens) if need is StatisticsNeed.HESSIAN else None
    return LayerStatistics(len(tokens), second_moment, hessian)


def energy(matrix: Tensor, hessian: Tensor | None) -> float:
    """Return the squared norm of a matrix in float64: the plain one, or that of the outputs, tr(M H M^T)."""
    matrix = matrix.double()
    return float(matrix.square().sum() if hessian is None else ((matrix @ hessian.double()) * matrix).sum())
