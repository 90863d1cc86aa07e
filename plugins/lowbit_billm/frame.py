"""The frame that BiLLM and ARB-LLM share: zones, binarization and compensation, block by block."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from lowbit import (
    BlockError,
    ColumnBlock,
    Factorization,
    FidelityConfig,
    LayerStatistics,
    Precision,
    ScaleDtype,
    StatisticsNeed,
    WeightQuantizer,
    column_blocks,
    compensate_blocks,
    inverse_factor,
    storable_dtype,
    unit_scale,
    working_copy,
)
from lowbit_billm.format import ResidualBinaryWeight, join_blocks
from lowbit_billm.zones import Zones, find_zones


class BlockBinarizationConfig(FidelityConfig):
    """Options of BiLLM's frame."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "saliency_denominator": "printed",
            "search_on": "weights",
            "col_range": (3, 30),
            "search_order": 1,
            "breakpoint": "max-fraction",
            "mean_shift": False,
            "factorization": "direct",
            "scale_dtype": "float16",
        },
        "code": {
            "saliency_denominator": "trailing",
            "search_on": "saliency",
            "col_range": (1, 49),
            "search_order": 2,
            "breakpoint": "percentile",
            "mean_shift": True,
            "factorization": "explicit",
            "scale_dtype": "float32",
        },
    }

    block_size: int = Field(128, ge=1, description="columns that share scales and whose errors are compensated at once")
    saliency: Literal["hessian", "magnitude"] = Field("hessian", description="what makes a column salient")
    saliency_denominator: Literal["printed", "trailing"] | None = Field(
        None, description="w^2 over ([H^-1]_jj)^2 as printed, or over the diagonal of the trailing inverse Hessian"
    )
    search_on: Literal["weights", "saliency"] | None = Field(
        None, description="whether both searches minimize the error of the weights or of the saliency map itself"
    )
    col_range: tuple[int, int] | None = Field(None, description="fewest and most salient columns of a block")
    search_order: Literal[1, 2] | None = Field(None, description="order of binarization in the search of columns")
    breakpoint: Literal["max-fraction", "percentile"] | None = Field(
        None, description="candidates: 9 fractions of the largest magnitude, or 81 quantiles"
    )
    mean_shift: bool | None = Field(None, description="subtract each group's mean before binarizing")
    block_comp: BlockError = Field("diagonal", description="how a block's error reaches later blocks")
    damping: float = Field(0.01, ge=0, description="share of the Hessian's mean diagonal added to its diagonal")
    precision: Precision = Field("float32", description="of the Hessian's factorization")
    factorization: Factorization | None = Field(
        None, description="of the Hessian: at once, or by way of its inverse as the code does, with other rounding"
    )
    scale_dtype: ScaleDtype | None = Field(None, description="stored dtype of scales and means")

    @field_validator("col_range")
    @classmethod
    def _check_range(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 0 <= value[0] <= value[1]:
            raise ValueError("must be two numbers, fewest and most, 0 <= fewest <= most")
        return value


class BlockBinarizationQuantizer(WeightQuantizer):
    """Binarizes block by block; a subclass says how one block is binarized once its zones are known."""

    needs: StatisticsNeed = StatisticsNeed.HESSIAN

    class Config(BlockBinarizationConfig):
        """Options of BiLLM's frame."""

    def quantize(
        self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator
    ) -> ResidualBinaryWeight:
        """Quantize a matrix [out, in]; without statistics no error is compensated."""
        config = self.config.resolved()
        factor = inverse_factor(
            statistics,
            weight.shape[1],
            config.damping,
            precision=config.precision,
            factorization=config.factorization,
            device=weight.device,
        )
        unit = unit_scale(weight)
        done: list[ResidualBinaryWeight] = []

        def quantize_block(block: ColumnBlock) -> Tensor:
            zones = find_zones(block, factor, config, unit)
            done.append(self.binarize(block.weight.contiguous(), zones, config, self._moments(statistics, block)))
            return done[-1].dequantize()

        bounds = column_blocks(weight.shape[1], config.block_size)
        compensate_blocks(working_copy(weight, factor), factor, bounds, quantize_block, config.block_comp)
        dtypes = {storable_dtype(config.scale_dtype, *_scales(block)) for block in done}
        return join_blocks(done, dtypes.pop() if len(dtypes) == 1 else torch.float32)

    @abstractmethod
    def binarize(self, weight: Tensor, zones: Zones, config: Any, moments: Tensor | None) -> ResidualBinaryWeight:
        """Binarize one block.

        Args:
            weight: Compensated weights, float32 [out, columns].
            zones: Its division.
            config: Resolved options.
            moments: The block's part of the Hessian, float32 [columns, columns]; `None` without statistics.

        Returns:
            The block as a weight of its own; scales float32, holding values as they will be stored.
        """

    def _moments(self, statistics: LayerStatistics | None, block: ColumnBlock) -> Tensor | None:
        if statistics is None or statistics.hessian is None:
            return None
        return statistics.hessian[block.start : block.stop, block.start : block.stop]


def _scales(block: ResidualBinaryWeight) -> tuple[Tensor, ...]:
    return block.scales, block.means, block.column_scales, block.salient_column_scales


def rounded_to(dtype: ScaleDtype, beside: Tensor, values: Tensor) -> Tensor:
    """Return float32 values as they will be stored; unchanged where the dtype would lose one of them.

    Args:
        dtype: The dtype that was asked for.
        beside: Largest magnitude of the weights that each value belongs to, broadcasting against the values.
        values: Means or scales, float32.
    """
    return values.to(storable_dtype(dtype, values, beside=beside)).float()
