"""GPTQ (arXiv 2210.17323): uniform integers, column by column, each error compensated in the columns after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lowbit import (
    ColumnBlock,
    Factorization,
    FidelityConfig,
    GroupSize,
    InverseFactor,
    LayerStatistics,
    Precision,
    RoundColumn,
    ScaleDtype,
    StatisticsNeed,
    WeightQuantizer,
    column_blocks,
    compensate_columns,
    inverse_factor,
    storable_dtype,
    working_copy,
)
from lowbit_baselines.grid import UniformGrid
from lowbit_baselines.uniform import OrderedUniformWeight, UniformWeight


class GPTQ(WeightQuantizer):
    """Rounds columns one after the other to a uniform grid and compensates each error by the inverse Hessian.

    The code differs from the paper where a group is shorter than a block: the ranges of all groups that start in a
    block come from the weights at the block's start, without the updates made inside the block (`ranges: stale`).
    Without groups a row's range is that of the original weights.
    """

    name: ClassVar[str] = "gptq"
    needs: StatisticsNeed = StatisticsNeed.HESSIAN

    class Config(FidelityConfig):
        """Options of GPTQ."""

        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
            "paper": {"ranges": "fresh", "factorization": "direct", "scale_dtype": "float16"},
            "code": {"ranges": "stale", "factorization": "explicit", "scale_dtype": "float32"},
        }

        bits: int = Field(2, ge=1, le=8, description="bits a weight")
        group_size: GroupSize = Field(128, description="columns that share a scale; -1 for whole rows")
        symmetric: bool = Field(False, description="fix the zero point at the middle of the grid")
        act_order: bool = Field(False, description="quantize columns by falling diagonal of the Hessian")
        static_groups: bool = Field(
            False, description="with act_order: keep groups of neighbouring columns, their ranges from the original"
        )
        ranges: Literal["fresh", "stale"] | None = Field(
            None, description="ranges of a group from weights that hold every update before it, or the block's start"
        )
        block_size: int = Field(128, ge=1, description="columns whose errors reach later blocks together")
        damping: float = Field(0.01, ge=0, description="share of the Hessian's mean diagonal added to its diagonal")
        precision: Precision = Field("float32", description="of the Hessian's factorization")
        factorization: Factorization | None = Field(
            None, description="of the Hessian: at once, or by way of its inverse as the code does, with other rounding"
        )
        scale_dtype: ScaleDtype | None = Field(None, description="stored dtype of the scales")

    def quantize(self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator) -> UniformWeight:
        """Quantize a matrix [out, in]; without statistics no error is compensated."""
        config = self.config.resolved()
        factor = inverse_factor(
            statistics,
            weight.shape[1],
            config.damping,
            config.act_order,
            config.precision,
            config.factorization,
            weight.device,
        )
        columns = working_copy(weight, factor)  # [in, out]
        run = _Rounding(config, weight, columns, factor)
        cuts = range(0, weight.shape[1], run.group_columns) if config.ranges == "fresh" else ()
        compensate_columns(columns, factor, column_blocks(weight.shape[1], config.block_size, cuts), run.start_block)
        return run.result()


class _Rounding:
    """The grid of every group and the codes so far, of one matrix that is quantized column by column.

    Args:
        config: Resolved options.
        weight: The original weights, float32 [out, in].
        columns: The working copy, float32 [in, out].
        factor: The layer's inverse factor.
    """

    def __init__(self, config: Any, weight: Tensor, columns: Tensor, factor: InverseFactor) -> None:
        length, out = columns.shape
        self._config = config
        self._grid = UniformGrid(config.bits, config.symmetric)
        self._order = factor.order
        self.group_columns = length if config.group_size == -1 else min(config.group_size, length)
        groups = -(-length // self.group_columns)
        self._dtype = torch.float16
        self._scales = torch.zeros(groups, out, device=columns.device)
        self._divisors = torch.zeros_like(self._scales)
        self._zero_points = torch.zeros_like(self._scales)
        self._codes = torch.empty(length, out, dtype=torch.uint8, device=columns.device)
        self._static = groups == 1 or (config.act_order and config.static_groups)
        if groups == 1:
            self._set_grid(0, weight.T)
        elif self._static:
            for group in range(groups):
                alive = weight.T[group * self.group_columns : (group + 1) * self.group_columns].clone()
                alive[factor.dead[group * self.group_columns : (group + 1) * self.group_columns]] = 0
                self._set_grid(group, alive)
        source = torch.arange(length) if factor.order is None or not self._static else factor.order.cpu()
        self._group_of = (source // self.group_columns).tolist()  # group of each position in the working copy

    def _set_grid(self, group: int, columns: Tensor) -> None:
        """Fix a group's grid from its weights [columns, out], its scale rounded to what is stored."""
        lowest, scales = self._grid.span(columns, dim=0)
        dtype = storable_dtype(self._config.scale_dtype, scales)
        self._dtype = dtype if group == 0 else torch.promote_types(self._dtype, dtype)
        self._scales[group] = scales.to(dtype).float()
        self._divisors[group] = self._grid.divisors(self._scales[group])
        self._zero_points[group] = self._grid.zero_points(lowest, self._scales[group])

    def start_block(self, block: ColumnBlock) -> RoundColumn:
        """Fix the grids of the groups that start in a block; return what rounds its columns."""
        if not self._static:
            for start in range(block.start, block.stop):
                if start % self.group_columns == 0:
                    first = start - block.start
                    self._set_grid(start // self.group_columns, block.remaining.T[first : first + self.group_columns])

        def round_column(position: int, column: Tensor) -> Tensor:
            group = self._group_of[block.start + position]
            zero_point = self._zero_points[group]
            codes = self._grid.codes(column, self._divisors[group], zero_point)
            self._codes[block.start + position] = codes
            return codes.sub_(zero_point).mul_(self._scales[group])

        return round_column

    def result(self) -> UniformWeight:
        """Return the quantized weight with its columns in their own order."""
        codes = self._codes
        if self._order is not None:
            codes = torch.empty_like(codes)
            codes[self._order] = self._codes
        fields: dict[str, Any] = {
            "codes": codes.T.contiguous(),
            "scales": self._scales.T.contiguous().to(self._dtype),
            "zero_points": self._zero_points.T.to(torch.uint8).contiguous(),
            "bits": self._config.bits,
            "group_size": self._config.group_size,
        }
        if self._order is None or self._static:
            return UniformWeight(**fields)
        group_index = torch.empty(len(self._group_of), dtype=torch.int32, device=codes.device)
        group_index[self._order] = torch.tensor(self._group_of, dtype=torch.int32, device=codes.device)
        return OrderedUniformWeight(**fields, group_index=group_index)
