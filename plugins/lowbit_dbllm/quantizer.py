"""Flexible Dual Binarization (FDB): from a matrix to planes and scales, and to what trains them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from lowbit import (
    GroupSize,
    LayerStatistics,
    Parametrization,
    QuantizedWeight,
    ScaleDtype,
    StatisticsNeed,
    WeightQuantizer,
    from_groups,
    map_chunks,
    storable_dtype,
    to_groups,
)
from lowbit_dbllm.format import DualBinaryWeight
from lowbit_dbllm.gradients import GradientRule
from lowbit_dbllm.levels import alternate, assign_codes, grid_search, is_ordered
from lowbit_dbllm.training import TrainableDualBinarization

CHUNK_ELEMENTS = 2**19
LEAST_CHUNKS = 8
LEAST_IMPORTANCE = 1e-6

Orientation = Literal["positive", "negative", "per-group"]


class FlexibleDualBinarization(WeightQuantizer):
    """Splits a 2-bit weight into two {0, 1} planes with one pair of real scales a group (DB-LLM, arXiv 2402.11960).

    The paper starts from alpha1 = 2s, alpha2 = -s. It does not say which s; `minmax` takes half of the largest
    magnitude, `mse` the s of least squared error and then fits both scales freely. The paper's grid reaches further on
    the positive side; choosing its side by group is our extension (`orientation="per-group"`), and so is counting
    errors by the inputs that they are multiplied with (`importance="second-moment"`).
    """

    name: ClassVar[str] = "fdb"

    class Config(BaseModel):
        """Options of Flexible Dual Binarization."""

        group_size: GroupSize = Field(64, description="columns that share a pair of scales; -1 for whole rows")
        scale_init: Literal["minmax", "mse"] = Field("mse", description="how the scales are found")
        importance: Literal["none", "second-moment"] = Field(
            "none", description="of `mse`: weights count alike, or by the mean square of what they are multiplied with"
        )
        orientation: Orientation = Field("per-group", description="on which side of zero the grid reaches further")
        grid_candidates: int = Field(32, ge=2, le=1024, description="scales tried by the grid search of `mse`")
        iterations: int = Field(20, ge=0, le=1000, description="most rounds of alternating least squares of `mse`")
        scale_dtype: ScaleDtype = Field("float16", description="stored dtype of the scales")
        gradient: GradientRule = Field(
            "levels",
            description="of training: through the levels as in learned-step, codes as constants, or identity steps",
        )
        train_latent_weight: bool = Field(
            True, description="train the weight that codes are rounded from, not only the scales; the paper is silent"
        )

    def __init__(self, config: BaseModel | None = None) -> None:
        super().__init__(config)
        if self.config.importance != "none":
            self.needs = StatisticsNeed.SECOND_MOMENT

    def quantize(
        self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator
    ) -> DualBinaryWeight:
        """Quantize a matrix [out, in]; no random numbers are used, and statistics only for `importance`."""
        importance = None
        if statistics is not None and self.config.importance != "none":
            importance = _importance(statistics.second_moment, self.config.group_size)
        fitted = map_chunks(
            lambda rows: self._fit(to_groups(rows, self.config.group_size), importance), _chunks(weight)
        )
        alpha1 = torch.cat([pair[0] for pair in fitted])  # [out, groups]
        alpha2 = torch.cat([pair[1] for pair in fitted])  # [out, groups]
        return self._assemble(weight, alpha1, alpha2, _ordered_dtype(self.config.scale_dtype, alpha1, alpha2))

    def parametrize(self, weight: Tensor, quantized: QuantizedWeight) -> TrainableDualBinarization:
        """Make a matrix [out, in] trainable, its scales starting from what it was quantized to."""
        assert isinstance(quantized, DualBinaryWeight)
        return TrainableDualBinarization(quantized, self.config.gradient, self.config.train_latent_weight)

    def freeze(self, latent_weight: Tensor, parametrization: Parametrization) -> DualBinaryWeight:
        """Round the trained scales to their stored dtype and choose the codes of the latent weight [out, in]."""
        assert isinstance(parametrization, TrainableDualBinarization)
        return self._assemble(latent_weight, *parametrization.scales(), parametrization.scale_dtype)

    def _assemble(self, weight: Tensor, alpha1: Tensor, alpha2: Tensor, dtype: torch.dtype) -> DualBinaryWeight:
        """Choose the codes of a matrix [out, in] for scales [out, groups] rounded to their stored dtype."""
        alpha1, alpha2 = alpha1.to(dtype), alpha2.to(dtype)
        planes = map_chunks(partial(_codes, self.config.group_size), _chunks(weight, alpha1, alpha2))
        return DualBinaryWeight(
            plane1=torch.cat([pair[0] for pair in planes]),
            plane2=torch.cat([pair[1] for pair in planes]),
            alpha1=alpha1,
            alpha2=alpha2,
            group_size=self.config.group_size,
        )

    def _fit(self, groups: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return both scales [rows, groups] of groups [rows, groups, group_size], signed by their orientation."""
        signs = {"positive": (1,), "negative": (-1,), "per-group": (1, -1)}[self.config.orientation]
        starts = self._start(groups, signs, importance)
        best1, best2, best_error = self._fit_oriented(groups * signs[0], starts[0], importance)
        best1, best2 = best1 * signs[0], best2 * signs[0]
        for sign, start in zip(signs[1:], starts[1:], strict=True):
            alpha1, alpha2, error = self._fit_oriented(groups * sign, start, importance)
            better = error < best_error
            best1, best2 = torch.where(better, alpha1 * sign, best1), torch.where(better, alpha2 * sign, best2)
            best_error = torch.where(better, error, best_error)
        return best1.squeeze(-1), best2.squeeze(-1)

    def _start(self, groups: Tensor, signs: Sequence[int], importance: Tensor | None) -> list[Tensor]:
        """Return the s [rows, groups, 1] to start from in each orientation."""
        if self.config.scale_init == "minmax":
            return [groups.abs().amax(-1, keepdim=True) / 2] * len(signs)
        return [scale for scale, _ in grid_search(groups, self.config.grid_candidates, signs, importance)]

    def _fit_oriented(self, groups: Tensor, scale: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return alpha1, alpha2 and the squared error in the plain orientation, each [rows, groups, 1]."""
        iterations = self.config.iterations if self.config.scale_init == "mse" else 0
        return alternate(groups, 2 * scale, -scale, iterations, importance)


def _importance(second_moment: Tensor, group_size: int) -> Tensor | None:
    """Return what each column's squared error counts, [1, groups, group_size], with mean 1; padding counts nothing."""
    mean = second_moment.mean()
    if not mean > 0:
        return None
    # A column that was always zero still counts a little: its group needs an error to lower.
    relative = (second_moment / mean).clamp_min(LEAST_IMPORTANCE)
    return to_groups(relative.unsqueeze(0), group_size)


def _chunks(weight: Tensor, *others: Tensor) -> list[tuple[Tensor, ...]]:
    """Split into rows for threads to work on: large, for the many steps on small groups, yet a part of the layer."""
    rows = max(1, min(CHUNK_ELEMENTS, weight.numel() // LEAST_CHUNKS) // max(1, weight.shape[1]))
    return list(zip(*(torch.split(tensor, rows) for tensor in (weight, *others)), strict=True))


def _ordered_dtype(wanted: ScaleDtype, alpha1: Tensor, alpha2: Tensor) -> torch.dtype:
    """Return the dtype to store the scales in: float32 where rounding would break the order of the levels."""
    dtype = storable_dtype(wanted, alpha1, alpha2)
    sign = alpha1.sign()
    first, second = alpha1.to(dtype).float() * sign, alpha2.to(dtype).float() * sign
    return dtype if bool((is_ordered(first, second) | (alpha1 == 0)).all()) else torch.float32


def _codes(group_size: int, rows: Tensor, alpha1: Tensor, alpha2: Tensor) -> tuple[Tensor, Tensor]:
    """Return both planes [rows, in] for scales [rows, groups] as they are stored."""
    groups = to_groups(rows, group_size)
    first, second = alpha1.float().unsqueeze(-1), alpha2.float().unsqueeze(-1)
    sign = torch.where(first < 0, -1.0, 1.0)
    planes = assign_codes(groups * sign, first * sign, second * sign)
    return from_groups(planes[0], rows.shape[1]), from_groups(planes[1], rows.shape[1])
