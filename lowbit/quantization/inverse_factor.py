"""The upper Cholesky factor of the inverse Hessian, which error compensation works with."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.contracts import LayerStatistics
from lowbit.errors import QuantizationWarning
from lowbit.quantization.magnitude import unit_scale
from lowbit.quantization.triangular import flip_in_place, invert_lower_in_place

Precision = Literal["float32", "float64"]

SMALLEST_RAISED_DAMPING = 1e-4
LARGEST_DAMPING = 1e4
ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class InverseFactor:
    """U, upper triangular with a positive diagonal, U^T U = (H + damping * mean(diag H) * I)^-1.

    U_jj^2 is the j-th diagonal element of the inverse Hessian of the columns j and later, those that are not yet
    quantized when column j is.

    Args:
        upper: float32 [in, in]; columns in the order in which they are to be quantized. Its scale is arbitrary: only
            ratios of its elements matter.
        dead: bool [in], in the weight's own order: columns whose input was always zero. Their weights do not matter.
        order: int64 [in]: which column of the weight comes first, second, ...; `None` for the weight's own order.
        damping: Share of the mean diagonal that was added; more than asked for where that was needed.
    """

    upper: Tensor
    dead: Tensor
    order: Tensor | None
    damping: float

    def inverse_diagonal(self) -> Tensor:
        """Return the diagonal of the whole inverse Hessian, float32 [in], in the order of `upper`."""
        rows = torch.split(self.upper, ROWS_AT_A_TIME)
        return torch.stack([part.square().sum(0) for part in rows]).sum(0)


def inverse_factor(
    statistics: LayerStatistics | None,
    columns: int,
    damping: float = 0.01,
    activation_order: bool = False,
    precision: Precision = "float32",
) -> InverseFactor:
    """Factorize a layer's inverse Hessian (GPTQ, arXiv 2210.17323, step 3 of section 3.3).

    H is reversed, factorized once as L L^T, and L inverted: its reversed inverse is U. The inverse Hessian itself is
    never formed, which halves the work of inverting and factorizing again and needs memory for 1.25 n^2 numbers.
    Where the damped Hessian is not positive definite in floating point, damping is raised tenfold until it is, and
    a `QuantizationWarning` says so.

    Args:
        statistics: With the Hessian; `None`, or inputs that were all zero, makes U the identity, so that nothing is
            compensated.
        columns: Number of columns of the weight.
        damping: Share of the mean diagonal that is added to the diagonal.
        activation_order: Order columns by falling diagonal of the Hessian ("act-order").
        precision: Of the factorization; float64 needs twice the memory.

    Raises:
        ValueError: The statistics hold no Hessian, or it has values that are not finite.
    """
    hessian = None if statistics is None else statistics.hessian
    if statistics is not None and hessian is None:
        raise ValueError("error compensation needs the Hessian: declare needs = StatisticsNeed.HESSIAN")
    if hessian is None or not bool(hessian.diagonal().any()):
        if hessian is not None:
            warnings.warn("every calibration input was zero; no error is compensated", QuantizationWarning, 2)
        device = None if hessian is None else hessian.device
        alive = torch.zeros(columns, dtype=torch.bool, device=device)
        return InverseFactor(torch.eye(columns, device=device), alive, None, 0.0)
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise ValueError("the Hessian has values that are not finite")
    order = torch.argsort(diagonal, descending=True, stable=True) if activation_order else None
    upper, used = _factorize(hessian, damping, order, precision)
    if used != damping:
        warnings.warn(
            f"the Hessian is not positive definite with damping {damping:g}; {used:g} was used", QuantizationWarning, 2
        )
    return InverseFactor(upper, diagonal == 0, order, used)


def _factorize(hessian: Tensor, damping: float, order: Tensor | None, precision: Precision) -> tuple[Tensor, float]:
    """Return U float32 [in, in] and the damping that made the factorization possible."""
    tried = damping
    while tried <= LARGEST_DAMPING:
        upper = _try_factorize(hessian, tried, order, precision)
        if upper is not None:
            return upper, tried
        tried = max(10 * tried, SMALLEST_RAISED_DAMPING)
    raise ValueError(f"the Hessian cannot be factorized even with damping {LARGEST_DAMPING:g}")


def _try_factorize(hessian: Tensor, damping: float, order: Tensor | None, precision: Precision) -> Tensor | None:
    matrix = _reversed_copy(hessian, order, torch.float64 if precision == "float64" else torch.float32)
    diagonal = matrix.diagonal()
    mean = float(diagonal.mean())
    diagonal.masked_fill_(diagonal == 0, 1.0)
    diagonal.add_(damping * mean)
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, info))
    if int(info) != 0 or not _finite(matrix.diagonal()):
        return None
    upper = flip_in_place(invert_lower_in_place(matrix)).float()
    return upper if math.isfinite(float(upper.sum())) else None


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def _reversed_copy(hessian: Tensor, order: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return H with rows and columns in reversed order, divided by a power of two near its largest diagonal."""
    size = hessian.shape[0]
    natural = torch.arange(size, device=hessian.device) if order is None else order
    backwards = natural.flip(0)
    scale = unit_scale(hessian.diagonal())
    result = torch.empty(size, size, dtype=dtype, device=hessian.device)
    for start in range(0, size, ROWS_AT_A_TIME):
        rows = hessian[backwards[start : start + ROWS_AT_A_TIME]]
        result[start : start + ROWS_AT_A_TIME] = rows[:, backwards] / scale
    return result
