"""A plugin for measurements: rounding whose scales weigh each column by the Hessian of the layer's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from lowbit_baselines import UniformWeight
from pydantic import BaseModel, Field
from torch import Tensor

from lowbit import (
    GroupSize,
    LayerStatistics,
    Method,
    StatisticsNeed,
    WeightQuantizer,
    from_groups,
    hookimpl,
    row_chunks,
    to_groups,
)

BITS = 2
LARGEST_CODE = 2**BITS - 1
ZERO_POINT = 1


class HessianRounding(WeightQuantizer):
    """Rounds to the grid -s, 0, s, 2s with the s of least error weighted by the diagonal of the Hessian."""

    name: ClassVar[str] = "hessian-rounding"
    needs: ClassVar[StatisticsNeed] = StatisticsNeed.HESSIAN

    class Config(BaseModel):
        """Options."""

        group_size: GroupSize = Field(64, description="columns that share a scale")
        candidates: int = Field(8, ge=1, description="scales tried for a group")

    def quantize(self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator) -> UniformWeight:
        """Quantize a matrix [out, in]; without statistics every column weighs the same."""
        size = self.config.group_size
        importance = torch.ones(weight.shape[1]) if statistics is None else _diagonal(statistics)
        columns = to_groups(importance[None], size)  # [1, groups, group_size]
        parts = [self._fit(to_groups(rows, size), columns) for (rows,) in row_chunks(weight)]
        codes = torch.cat([from_groups(part[0], weight.shape[1]) for part in parts]).to(torch.uint8)
        scales = torch.cat([part[1] for part in parts])  # [out, groups]
        zeros = torch.full(scales.shape, ZERO_POINT, dtype=torch.uint8)
        return UniformWeight(codes=codes, scales=scales, zero_points=zeros, bits=BITS, group_size=size)

    def _fit(self, groups: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        largest = groups.abs().amax(-1, keepdim=True)  # [rows, groups, 1]
        best_error = torch.full_like(largest, torch.inf)
        best_scale = largest
        for fraction in torch.linspace(0.3, 1, self.config.candidates).tolist():
            scale = (largest * fraction).half().float()
            error = ((_round(groups, scale) - ZERO_POINT) * scale - groups).square_().mul_(importance)
            total = error.sum(-1, keepdim=True)
            best_scale = torch.where(total < best_error, scale, best_scale)
            best_error = torch.minimum(total, best_error)
        return _round(groups, best_scale), best_scale.squeeze(-1).half()


def _round(groups: Tensor, scale: Tensor) -> Tensor:
    ratio = groups / scale.clamp_min(torch.finfo(torch.float32).tiny)
    return ratio.round_().add_(ZERO_POINT).clamp_(0, LARGEST_CODE)


def _diagonal(statistics: LayerStatistics) -> Tensor:
    assert statistics.hessian is not None
    return statistics.hessian.diagonal()


@hookimpl
def lowbit_weight_quantizers() -> Iterator[Any]:
    """Register the quantizer."""
    yield HessianRounding


@hookimpl
def lowbit_methods() -> Iterator[Method]:
    """Register the method."""
    yield Method("hessian-rounding", quantizer="hessian-rounding", description="2 bits, scales weighted by the Hessian")
