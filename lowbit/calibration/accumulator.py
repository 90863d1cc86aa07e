"""Running sums over what enters a layer, the same whatever the order of the samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowbit.contracts import LayerStatistics, StatisticsNeed
from lowbit.models.freed_memory import release_freed_memory

STRIP_ROWS = 128
UNIT_BITS = 32
"""A product of two columns is rounded to 2^-32 of the product of their norms in the first sample."""
ZERO_COLUMN_BITS = 8
LARGEST_EXPONENT = 60
RELEASED_BYTES = 2**23
"""Strips are freed before the matrix that takes their place is written; their pages go back as often as this."""


@dataclass
class InputAccumulator:
    """Running sums over the tokens that entered a layer.

    What one call adds, the tokens of one sample, is multiplied in float32; the sums are kept in float64. With
    exponents, each product is rounded to a whole number of units first, 2^-32 of the size that it had in the first
    sample. Whole numbers below 2^53 add up without any error, so the sums depend neither on the order of the samples
    nor on how they were dealt out to processes, as long as no column outgrows its first sample about a hundredfold in
    all of them. Beyond that, and without exponents, float64's own rounding remains.

    Args:
        need: Whether the full second-moment matrix is summed or only its diagonal.
        exponents: int32 [in], the sizes of columns as powers of two, the same in every process; from
            `column_exponents`.
        tokens: Tokens seen so far.
        sums: Sum of X^T X, the part of each strip of rows from its own first column on, [rows, in - first]; or sum of
            x^2, one tensor [in]; float64, empty before the first token.
    """

    need: StatisticsNeed
    exponents: Tensor | None = None
    tokens: int = 0
    sums: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        """Add inputs [..., in]."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()  # [tokens, in]
        if not len(rows):
            return
        if not self.sums:
            self.start(rows.shape[1], rows.device)
        if self.exponents is not None:
            rows = rows * power_of_two(UNIT_BITS // 2 - self.exponents)
        if self.need is StatisticsNeed.HESSIAN:
            for total, strip in zip(self.sums, _strips(rows.shape[1]), strict=True):
                self._add(total, rows[:, strip].T @ rows[:, strip.start :])
        else:
            self._add(self.sums[0], rows.square().sum(0))
        self.tokens += len(rows)

    def _add(self, total: Tensor, product: Tensor) -> None:
        """Add a float32 tensor of this process's own to a float64 one in place."""
        if self.exponents is not None:
            product.round_()
        total.add_(product.to(total.device))

    def start(self, columns: int, device: torch.device) -> None:
        """Make the sums, all zero.

        Args:
            columns: Numbers of an input.
            device: Where inputs come.
        """
        if self.exponents is not None:
            self.exponents = self.exponents.to(device)
        # Apple's GPUs have no float64; they share the processor's memory.
        place = torch.device("cpu") if device.type == "mps" else device
        shapes: list[tuple[int, ...]] = [(columns,)]
        if self.need is StatisticsNeed.HESSIAN:
            shapes = [(strip.stop - strip.start, columns - strip.start) for strip in _strips(columns)]
        self.sums = [torch.zeros(shape, dtype=torch.float64, device=place) for shape in shapes]

    def finish(self, device: torch.device | None = None) -> LayerStatistics | None:
        """Turn the sums into statistics, and free them as that goes on; return `None` if no token was seen.

        Args:
            device: Where the statistics are wanted; by default where the sums are.
        """
        if not self.tokens:
            return None
        columns, place = self.sums[0].shape[-1], self.sums[0].device
        where = device or place
        units = torch.ones(columns, dtype=torch.float64, device=place)
        if self.exponents is not None:
            units = power_of_two(self.exponents - UNIT_BITS // 2).to(place).double()
        if self.need is not StatisticsNeed.HESSIAN:
            mean = self.sums.pop().mul_(units.square()).div_(self.tokens)
            return LayerStatistics(self.tokens, mean.float().to(where))
        hessian = torch.empty(columns, columns, device=where)
        freed = 0
        for strip in reversed(list(_strips(columns))):
            part = self.sums.pop().mul_(units[strip, None]).mul_(units[strip.start :])
            hessian[strip, strip.start :] = part.mul_(2).div_(self.tokens)
            freed += part.nbytes
            del part
            if freed > RELEASED_BYTES:
                release_freed_memory()
                freed = 0
        for strip in _strips(columns):
            square = hessian[strip, strip]
            square.copy_(square.triu() + square.triu(1).T)
            hessian[strip.stop :, strip] = hessian[strip, strip.stop :].T
        return LayerStatistics(self.tokens, hessian.diagonal() / 2, hessian)


def column_exponents(x: Tensor) -> Tensor:
    """Return for each column the power of two just above its norm, int32 [in].

    A column of zeros is taken for smaller than all others: a unit too small costs nothing, one too large costs digits.

    Args:
        x: The first inputs of a layer, [..., in].
    """
    rows = x.detach().reshape(-1, x.shape[-1]).float()
    squares = rows.square().sum(0).cpu().double()
    known = torch.isfinite(squares) & (squares > 0)
    exponents = (torch.frexp(squares).exponent + 1) // 2
    smallest = exponents[known].min() - ZERO_COLUMN_BITS if bool(known.any()) else torch.tensor(-LARGEST_EXPONENT)
    return torch.where(known, exponents, smallest).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).int()


def power_of_two(exponents: Tensor) -> Tensor:
    """Return 2^exponents exactly, float32, for exponents from -126 to 127."""
    return ((exponents.int() + 127) * 2**23).view(torch.float32)


def _strips(columns: int) -> Iterator[slice]:
    """Yield strips of rows of a symmetric matrix; only what lies from their first column on is summed."""
    for start in range(0, columns, STRIP_ROWS):
        yield slice(start, min(start + STRIP_ROWS, columns))
