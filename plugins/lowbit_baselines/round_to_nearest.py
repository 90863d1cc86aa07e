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
from lowbit_baselines.uniform import UniformWeight


class RoundToNearest(WeightQuantizer):
    """Rounds each weight to a uniform grid over its group's range; the range always includes zero."""

    name: ClassVar[str] = "rtn"

    class Config(BaseModel):
        """Options of round to nearest."""

        bits: int = Field(2, ge=2, le=8, description="bits a weight")
        group_size: GroupSize = Field(64, description="columns that share a scale; -1 for whole rows")
        symmetric: bool = Field(False, description="fix the zero point at the middle of the grid")
        scale_dtype: ScaleDtype = Field("float16", description="stored dtype of the scales")

    def quantize(self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator) -> UniformWeight:
        """Quantize a matrix [out, in]; neither statistics nor random numbers are used."""
        group_size = self.config.group_size
        ranges = [self._range(to_groups(rows, group_size)) for (rows,) in row_chunks(weight)]
        lowest, scales = (torch.cat(parts) for parts in zip(*ranges, strict=True))  # [out, groups] each
        scales = scales.to(storable_dtype(self.config.scale_dtype, scales))
        zero_points = self._zero_points(lowest, scales.float())
        codes = [self._codes(*chunk) for chunk in row_chunks(weight, scales, zero_points)]
        return UniformWeight(
            codes=torch.cat(codes),
            scales=scales,
            zero_points=zero_points.to(torch.uint8),
            bits=self.config.bits,
            group_size=group_size,
        )

    @property
    def _largest_code(self) -> int:
        return int(2**self.config.bits - 1)

    def _range(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest value and the scale of groups [rows, groups, group_size], each [rows, groups]."""
        lowest, highest = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
        if self.config.symmetric:
            largest = torch.maximum(-lowest, highest)
            return -largest, 2 * largest / self._largest_code
        return lowest, (highest - lowest) / self._largest_code

    def _zero_points(self, lowest: Tensor, scales: Tensor) -> Tensor:
        """Return integer zero points [out, groups] as float32; a group of zeros gets 0."""
        if self.config.symmetric:
            return torch.full_like(scales, (self._largest_code + 1) // 2)
        ratio = torch.where(scales > 0, -lowest / scales, 0)
        return ratio.round().clamp(0, self._largest_code)

    def _codes(self, rows: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
        """Return the codes uint8 [rows, in] for scales and zero points [rows, groups] as they are stored."""
        groups = to_groups(rows, self.config.group_size)
        scale = scales.float().unsqueeze(-1)
        ratio = torch.where(scale > 0, groups / scale, 0)
        codes = (ratio.round() + zero_points.unsqueeze(-1)).clamp(0, self._largest_code)
        return from_groups(codes, rows.shape[1]).to(torch.uint8)
