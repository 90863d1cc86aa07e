"""The ternary quantizer: from a matrix to digits and scales, and to what trains them."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from lowbit import (
    GroupSize,
    LayerStatistics,
    Parametrization,
    QuantizedWeight,
    ScaleDtype,
    WeightQuantizer,
    group_lengths,
    map_chunks,
    row_chunks,
    storable_dtype,
    to_groups,
)
from pydantic import BaseModel, Field
from torch import Tensor

from lowbit_ternary.format import TernaryWeight
from lowbit_ternary.levels import least_error_scales, nearest_digits, twn_scales
from lowbit_ternary.training import TrainableTernary


class TernaryQuantizer(WeightQuantizer):
    """Sends each weight to the nearest of minus a scale, zero, and the scale; the scale is its group's.

    Ternary Weight Networks (arXiv 1605.04711) estimate the best scale from the mean magnitude (`scale=twn`); trying
    every number of weights at the outer levels finds it exactly (`scale=least-error`).
    """

    name: ClassVar[str] = "ternary"

    class Config(BaseModel):
        """Options of ternary quantization."""

        group_size: GroupSize = Field(64, description="columns that share a scale; -1 for whole rows")
        scale: Literal["least-error", "twn"] = Field(
            "least-error", description="scale of least squared error, or as Ternary Weight Networks estimate it"
        )
        scale_dtype: ScaleDtype = Field("float16", description="stored dtype of the scales")

    def quantize(self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator) -> TernaryWeight:
        """Quantize a matrix [out, in]; neither statistics nor random numbers are used."""
        find = least_error_scales if self.config.scale == "least-error" else twn_scales
        scales = torch.cat(map_chunks(partial(_scales, find, self.config.group_size), row_chunks(weight)))
        return self._assembled(weight, scales.to(storable_dtype(self.config.scale_dtype, scales)))

    def parametrize(self, weight: Tensor, quantized: QuantizedWeight) -> TrainableTernary:
        """Make a matrix [out, in] trainable, its scales starting from what it was quantized to."""
        assert isinstance(quantized, TernaryWeight)
        return TrainableTernary(quantized)

    def freeze(self, latent_weight: Tensor, parametrization: Parametrization) -> TernaryWeight:
        """Round the trained scales to their stored dtype and choose the digits of the latent weight [out, in]."""
        assert isinstance(parametrization, TrainableTernary)
        return self._assembled(latent_weight, parametrization.scales.detach().to(parametrization.scale_dtype))

    def _assembled(self, weight: Tensor, scales: Tensor) -> TernaryWeight:
        """Choose the digits of a matrix [out, in] for scales [out, groups] as they are stored."""
        size = self.config.group_size
        digits = [nearest_digits(rows, chunk, size) for rows, chunk in row_chunks(weight, scales)]
        return TernaryWeight(torch.cat(digits), scales, size)


def _scales(find: Callable[[Tensor, Tensor], Tensor], group_size: GroupSize, rows: Tensor) -> Tensor:
    return find(to_groups(rows, group_size), group_lengths(rows.shape[1], group_size).to(rows.device))
