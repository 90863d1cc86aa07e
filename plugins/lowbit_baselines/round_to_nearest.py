"""Round to nearest (RTN): the baseline that every method must beat."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from lowbit import (
    GroupSize,
    LayerStatistics,
    ScaleDtype,
    WeightQuantizer,
    from_groups,
    row_chunks,
    storable_dtype,
    to_groups,
)
from lowbit_baselines.grid import UniformGrid
from lowbit_baselines.uniform import UniformWeight


class RoundToNearest(WeightQuantizer):
    """Rounds each weight to a uniform grid over its group's range; the range always includes zero."""

    name: ClassVar[str] = "rtn"

    class Config(BaseModel):
        """Options of round to nearest."""

        bits: int = Field(2, ge=1, le=8, description="bits a weight")
        group_size: GroupSize = Field(64, description="columns that share a scale; -1 for whole rows")
        symmetric: bool = Field(False, description="fix the zero point at the middle of the grid")
        scale_dtype: ScaleDtype = Field("float16", description="stored dtype of the scales")

    def quantize(self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator) -> UniformWeight:
        """Quantize a matrix [out, in]; neither statistics nor random numbers are used."""
        group_size = self.config.group_size
        grid = UniformGrid(self.config.bits, self.config.symmetric)
        spans = [grid.span(to_groups(rows, group_size)) for (rows,) in row_chunks(weight)]
        lowest, scales = (torch.cat(parts) for parts in zip(*spans, strict=True))  # [out, groups] each
        scales = scales.to(storable_dtype(self.config.scale_dtype, scales))
        zero_points = grid.zero_points(lowest, scales.float())
        codes = [self._codes(grid, *chunk) for chunk in row_chunks(weight, scales, zero_points)]
        return UniformWeight(
            codes=torch.cat(codes),
            scales=scales,
            zero_points=zero_points.to(torch.uint8),
            bits=self.config.bits,
            group_size=group_size,
        )

    def _codes(self, grid: UniformGrid, rows: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
        """Return the codes uint8 [rows, in] for scales and zero points [rows, groups] as they are stored."""
        groups = to_groups(rows, self.config.group_size)
        codes = grid.codes(groups, grid.divisors(scales.float()).unsqueeze(-1), zero_points.unsqueeze(-1))
        return from_groups(codes, rows.shape[1]).to(torch.uint8)
