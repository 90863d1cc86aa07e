"""Learned-step uniform quantization: a step and a zero point a group, fitted first, then trained."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from lowbit import (
    GroupSize,
    LayerStatistics,
    Parametrization,
    QuantizedWeight,
    ScaleDtype,
    WeightQuantizer,
    group_views,
    map_chunks,
    row_chunks,
    storable_dtype,
)
from lowbit_baselines.affine import AffineWeight
from lowbit_baselines.learned_grid import Clipping, LearnedGrid, ZeroPoint
from lowbit_baselines.ranges import better_fit, least_error, min_max
from lowbit_baselines.uniform import UniformWeight

LEAST_STEP_SHARE = 2.0**-7
"""The smallest step that training may reach, as a share of what a group started with."""

LARGEST_OFFSET_ERROR = 0.25
"""How far rounding to the stored dtype may move a group's offset, in steps."""


class LearnedStep(WeightQuantizer):
    """Uniform quantization with a trained step and zero point (LSQ, arXiv 1902.08153; LSQ+, arXiv 2004.09576).

    These, beside the latent weight, are also what EfficientQAT (arXiv 2407.11062) trains, there with an integer zero
    point and minimum and maximum as the start. A floating-point zero point is stored as an offset (see
    `AffineWeight`). LSQ's factor on the gradient of the step is left out: adaptive optimizers undo it.
    """

    name: ClassVar[str] = "lsq"

    class Config(BaseModel):
        """Options of learned-step quantization."""

        bits: int = Field(2, ge=1, le=8, description="bits a weight")
        group_size: GroupSize = Field(64, description="columns that share a step; -1 for whole rows")
        zero_point: ZeroPoint = Field(
            "float", description="zero point in the scales' dtype, or an integer of as many bits as a code"
        )
        scale_init: Literal["mse", "minmax"] = Field(
            "mse", description="steps of least squared error of the weights, or over a group's whole range"
        )
        iterations: int = Field(20, ge=0, le=1000, description="most rounds of alternating least squares of `mse`")
        scale_dtype: ScaleDtype = Field("float16", description="stored dtype of steps and floating-point zero points")
        clipping: Clipping = Field(
            "levels",
            description="training: weights beyond the outermost level count as clipped, as in LSQ, "
            "or those beyond that level's cell, half a step further, as in EfficientQAT (cells)",
        )
        train_latent_weight: bool = Field(
            True, description="training: train the weight that codes are rounded from, not only steps and zero points"
        )

    def quantize(
        self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator
    ) -> AffineWeight | UniformWeight:
        """Quantize a matrix [out, in]; neither statistics nor random numbers are used."""
        unrounded = self._grid(torch.float32)
        found = map_chunks(partial(self._fits, unrounded), row_chunks(weight))
        fits = [torch.cat(parts) for parts in zip(*found, strict=True)]  # [out, groups] each
        grid = self._grid(self._stored_dtype(fits))
        if self.config.scale_init == "minmax":
            return _assembled(weight, fits[0], fits[1], grid)
        chosen = map_chunks(partial(_better, grid), row_chunks(weight, *fits))
        steps, shifts = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        return _assembled(weight, steps, shifts, grid)

    def parametrize(self, weight: Tensor, quantized: QuantizedWeight) -> TrainableUniform:
        """Make a matrix [out, in] trainable, step and zero point starting from what it was quantized to."""
        assert isinstance(quantized, AffineWeight | UniformWeight)
        return TrainableUniform(quantized, self.config.clipping, self.config.train_latent_weight)

    def freeze(self, latent_weight: Tensor, parametrization: Parametrization) -> AffineWeight | UniformWeight:
        """Round steps and zero points to what is stored and choose the codes of the latent weight [out, in]."""
        assert isinstance(parametrization, TrainableUniform)
        with torch.no_grad():
            return _assembled(latent_weight, parametrization.steps, parametrization.shifts, parametrization.grid)

    def _grid(self, dtype: torch.dtype) -> LearnedGrid:
        return LearnedGrid(self.config.bits, self.config.group_size, self.config.zero_point, dtype)

    def _fits(self, grid: LearnedGrid, rows: Tensor) -> tuple[Tensor, ...]:
        """Return steps and shifts [rows, groups] over the whole range, then, for `mse`, those of least error."""
        parts = []
        for groups in group_views(rows, grid.group_size):
            fits: tuple[Tensor, ...] = min_max(groups, grid)
            if self.config.scale_init == "mse":
                fits = (*fits, *least_error(groups, grid, self.config.iterations))
            parts.append(fits)
        return tuple(torch.cat(tensors, dim=1).squeeze(-1) for tensors in zip(*parts, strict=True))

    def _stored_dtype(self, fits: list[Tensor]) -> torch.dtype:
        """Return the dtype that loses none of the fits: pairs of steps and shifts [out, groups]."""
        wanted: ScaleDtype = self.config.scale_dtype
        for steps, shifts in zip(fits[::2], fits[1::2], strict=True):
            dtype = storable_dtype(wanted, steps)
            if self.config.zero_point == "float":
                dtype = torch.promote_types(dtype, storable_dtype(wanted, shifts, beside=steps))
                moved = (shifts.to(dtype).float() - shifts).abs()
                if bool(((moved > LARGEST_OFFSET_ERROR * steps) & (steps > 0)).any()):
                    return torch.float32
            if dtype == torch.float32:
                return dtype
        return dtype


class TrainableUniform(Parametrization):
    """A matrix on a uniform grid whose step and shift are trained, its codes chosen anew in every forward pass.

    The first output is what the matrix was quantized to. A group that started with one level, its step 0, keeps one:
    nothing but its offset is trained. Everything is float32.

    Args:
        quantized: Where steps and shifts start.
        clipping: Which weights count as clipped in the backward pass.
        trains_latent_weight: Whether the latent weight is trained beside them.
    """

    def __init__(self, quantized: AffineWeight | UniformWeight, clipping: Clipping, trains_latent_weight: bool) -> None:
        super().__init__(trains_latent_weight)
        zero_point: ZeroPoint = "float" if isinstance(quantized, AffineWeight) else "integer"
        shifts = quantized.offsets if isinstance(quantized, AffineWeight) else quantized.zero_points
        dtype = quantized.scales.dtype
        self.grid = LearnedGrid(quantized.bits, quantized.group_size, zero_point, dtype, clipping)
        steps = quantized.scales.detach().float()
        # Below the smallest normal number, rounding to the stored dtype could take the whole step away.
        least = (steps * LEAST_STEP_SHARE).clamp_min(torch.finfo(dtype).tiny).minimum(steps)
        self.steps = nn.Parameter(steps.clone())  # [out, groups]
        self.shifts = nn.Parameter(shifts.detach().float().clone())  # [out, groups]
        self.least_steps: Tensor
        self.alive: Tensor | None
        self.register_buffer("least_steps", least)  # [out, groups]
        self.register_buffer("alive", None if bool((steps > 0).all()) else steps > 0)  # [out, groups]

    def forward(self, latent_weight: Tensor) -> Tensor:
        """Return the matrix with steps and shifts as they are stored, float32 [out, in]."""
        return self.grid.fake_quantize(latent_weight, self.steps, self.shifts, self.alive)

    @torch.no_grad()
    def project(self) -> None:
        """Keep steps positive, integer zero points on the grid, and all within the stored dtype's range."""
        largest = torch.finfo(self.grid.scale_dtype).max
        steps = self.steps.maximum(self.least_steps).clamp_max(largest)
        self.steps.copy_(steps if self.alive is None else steps * self.alive)
        if self.grid.zero_point == "integer":
            self.shifts.clamp_(0, self.grid.largest_code)
        else:
            self.shifts.clamp_(-largest, largest)


def _better(grid: LearnedGrid, rows: Tensor, *fits: Tensor) -> tuple[Tensor, Tensor]:
    """Return steps and shifts [rows, groups] of whichever of two fits has less error, once stored, in each group."""
    parts = []
    first = 0
    for groups in group_views(rows, grid.group_size):
        last = first + groups.shape[1]
        whole_steps, whole_shifts, steps, shifts = (fit[:, first:last].unsqueeze(-1) for fit in fits)
        parts.append(better_fit(groups, grid, (whole_steps, whole_shifts), (steps, shifts)))
        first = last
    steps, shifts = (torch.cat(tensors, dim=1).squeeze(-1) for tensors in zip(*parts, strict=True))
    return steps, shifts


def _assembled(weight: Tensor, steps: Tensor, shifts: Tensor, grid: LearnedGrid) -> AffineWeight | UniformWeight:
    """Choose the codes of a matrix [out, in] for steps and shifts [out, groups] as they are stored."""
    steps, shifts = grid.stored(steps, shifts)
    codes = grid.quantized_codes(weight, steps, shifts)
    scales = steps.to(grid.scale_dtype)
    if grid.zero_point == "integer":
        return UniformWeight(codes, scales, shifts.to(torch.uint8), grid.bits, grid.group_size)
    return AffineWeight(codes, scales, shifts.to(grid.scale_dtype), grid.bits, grid.group_size)
