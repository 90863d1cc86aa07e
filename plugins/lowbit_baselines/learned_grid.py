"""The uniform grid whose step and zero point are trained, and its fake quantization with straight-through gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowbit import group_pieces

ZeroPoint = Literal["float", "integer"]
Clipping = Literal["levels", "cells"]


@dataclass(frozen=True)
class LearnedGrid:
    """A grid of 2^bits levels over each group of columns, its step and shift as they are stored.

    The shift of a `float` grid is its offset: w = step * code + offset. That of an `integer` grid is its zero point:
    w = step * (code - zero point).

    Args:
        bits: Bits a code, 1 to 8.
        group_size: Columns a group, or -1 for whole rows; the last group of a row may be shorter.
        zero_point: Which of the two grids.
        scale_dtype: What steps and offsets are rounded to.
        clipping: Which weights count as clipped in the backward pass: those beyond the outermost levels, or those
            more than half a step beyond them.
    """

    bits: int
    group_size: int
    zero_point: ZeroPoint
    scale_dtype: torch.dtype
    clipping: Clipping = "levels"

    @property
    def largest_code(self) -> int:
        """2^bits - 1."""
        return int(2**self.bits - 1)

    def stored(self, steps: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """Return steps and shifts rounded to what is stored, float32 of the same shapes."""
        # Adding 0 makes a negative zero a positive one, which a code of 0 can reproduce.
        rounded = steps.to(self.scale_dtype).float() + 0.0
        if self.zero_point == "integer":
            return rounded, shifts.round().clamp(0, self.largest_code) + 0.0
        return rounded, shifts.to(self.scale_dtype).float() + 0.0

    def codes(self, groups: Tensor, steps: Tensor, shifts: Tensor) -> Tensor:
        """Return the codes of the nearest levels, float32.

        Args:
            groups: [..., columns].
            steps: As they are stored, [..., 1]; a group whose step is 0 gets code 0, or its zero point.
            shifts: As they are stored, [..., 1].
        """
        positions = self._positions(groups, steps, shifts).round_()
        if self.zero_point == "integer":
            positions.add_(shifts)
        return positions.clamp_(0, self.largest_code)

    def levels(self, codes: Tensor, steps: Tensor, shifts: Tensor) -> Tensor:
        """Turn codes into what they stand for, in place."""
        if self.zero_point == "integer":
            return codes.sub_(shifts).mul_(steps)
        return codes.mul_(steps).add_(shifts)

    def quantized_codes(self, weight: Tensor, steps: Tensor, shifts: Tensor) -> Tensor:
        """Return the codes uint8 [out, in] of a matrix for steps and shifts [out, groups] as they are stored."""
        codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
        for (found, groups), (step, shift) in group_pieces((codes, weight), (steps, shifts), self.group_size):
            found.copy_(self.codes(groups, step, shift))
        return codes

    def fake_quantize(self, weight: Tensor, steps: Tensor, shifts: Tensor, alive: Tensor | None) -> Tensor:
        """Return the dequantized matrix float32 [out, in], differentiable in all of its arguments (see `_Quantize`).

        Args:
            weight: float32 [out, in].
            steps: Before rounding to what is stored, float32 [out, groups].
            shifts: Likewise, float32 [out, groups].
            alive: Which groups have more than one level, bool [out, groups]; `None` for all.
        """
        quantized: Tensor = _Quantize.apply(weight, steps, shifts, alive, self)  # type: ignore[no-untyped-call]
        return quantized

    def gradients(
        self, groups: Tensor, gradient: Tensor, steps: Tensor, shifts: Tensor, alive: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the groups [..., columns], of the steps [..., 1] and of the shifts [..., 1]."""
        integer = self.zero_point == "integer"
        positions = self._positions(groups, steps, shifts)
        rounded = positions.round()
        if integer:
            rounded.add_(shifts)
        codes = rounded.clamp(0, self.largest_code)
        if self.clipping == "cells":
            inside = codes == rounded
        else:
            exact = positions + shifts if integer else positions
            inside = exact == exact.clamp(0, self.largest_code)
        if alive is not None:
            inside.logical_and_(alive)
        if integer:
            codes.sub_(shifts)
        to_groups = gradient * inside
        to_steps = codes.sub_(positions.mul_(inside)).mul_(gradient).sum(-1, keepdim=True)
        # Subtracting before the sum leaves exactly 0 where nothing is clipped; rounding noise would move the optimizer.
        clipped = (gradient - to_groups).sum(-1, keepdim=True)
        return to_groups, to_steps, -steps * clipped if integer else clipped

    def _positions(self, groups: Tensor, steps: Tensor, shifts: Tensor) -> Tensor:
        """Return how many steps weights are from the level that the shift names; 0 for a group with one level."""
        divisors = torch.where(steps > 0, steps, torch.inf)
        return groups / divisors if self.zero_point == "integer" else (groups - shifts).div_(divisors)


class _Quantize(torch.autograd.Function):
    """Fake quantization with the gradients of learned-step quantization (arXiv 1902.08153, 2004.09576).

    With p the position of a weight in steps from the level that the shift names, and c that of its own level:
    an unclipped weight has d/dw = 1, d/d step = c - p and no effect on the shift; a clipped one has d/dw = 0,
    d/d step = c, and d/d offset = 1 or d/d zero point = -step. Rounding to what is stored passes gradients straight.
    The one matrix kept for the backward pass is the latent weight itself.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, steps: Tensor, shifts: Tensor, alive: Tensor | None, grid: LearnedGrid
    ) -> Tensor:
        """Return the dequantized matrix, float32 [out, in]."""
        stored = grid.stored(steps, shifts)
        quantized = torch.empty(weight.shape, device=weight.device)
        for (found, groups), (step, shift) in group_pieces((quantized, weight), stored, grid.group_size):
            found.copy_(grid.levels(grid.codes(groups, step, shift), step, shift))
        ctx.save_for_backward(weight, *stored, alive)
        ctx.grid = grid
        return quantized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weight, steps and shifts."""
        weight, steps, shifts, alive = ctx.saved_tensors
        to_steps, to_shifts = torch.empty_like(steps), torch.empty_like(shifts)
        # A latent weight that is not trained needs no gradient, so none is written.
        to_weight = torch.empty_like(gradient) if ctx.needs_input_grad[0] else None
        matrices = (weight, gradient) if to_weight is None else (weight, gradient, to_weight)
        scales = (steps, shifts, to_steps, to_shifts) if alive is None else (steps, shifts, to_steps, to_shifts, alive)
        for (groups, incoming, *outgoing), parts in group_pieces(matrices, scales, ctx.grid.group_size):
            step, shift, step_gradient, shift_gradient, *living = parts
            found = ctx.grid.gradients(groups, incoming, step, shift, living[0] if living else None)
            step_gradient.copy_(found[1])
            shift_gradient.copy_(found[2])
            if outgoing:
                outgoing[0].copy_(found[0])
        return to_weight, to_steps, to_shifts, None, None
