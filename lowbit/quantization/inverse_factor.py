"""The upper Cholesky factor of the inverse Hessian, which error compensation works with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.contracts import LayerStatistics
from lowbit.errors import QuantizationWarning
from lowbit.quantization.magnitude import unit_scale
from lowbit.quantization.triangular import flip_in_place, invert_lower_in_place

Precision = Literal["float32", "float64"]
Factorization = Literal["direct", "explicit"]

SMALLEST_RAISED_DAMPING = 1e-4
LARGEST_DAMPING = 1e4
ROWS_AT_A_TIME = 256

_Attempt = Callable[[Tensor, Tensor, float, torch.dtype], Tensor | None]


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
    factorization: Factorization = "direct",
    device: torch.device | None = None,
) -> InverseFactor:
    """Factorize a layer's inverse Hessian (GPTQ, arXiv 2210.17323, step 3 of section 3.3).

    `direct`: H is reversed, factorized once as L L^T, and L inverted: its reversed inverse is U. The inverse Hessian
    itself is never formed, which halves the work, keeps more digits and needs memory for 1.25 n^2 numbers.
    `explicit`: H is factorized, inverted and factorized again, as the code of GPTQ and of its descendants does; only
    its rounding errors differ, but those decide single weights, and every weight after them. It needs 2 n^2 numbers.
    Where the damped Hessian is not positive definite in floating point, damping is raised tenfold until it is, and
    a `QuantizationWarning` says so.

    Args:
        statistics: With the Hessian; `None`, or inputs that were all zero, makes U the identity, so that nothing is
            compensated.
        columns: Number of columns of the weight.
        damping: Share of the mean diagonal that is added to the diagonal.
        activation_order: Order columns by falling diagonal of the Hessian ("act-order").
        precision: Of the factorization; float64 needs twice the memory.
        factorization: Which of the two.
        device: Where U is made when there are no statistics; else it is where they are.

    Raises:
        ValueError: The statistics hold no Hessian, or it has values that are not finite.
    """
    hessian = None if statistics is None else statistics.hessian
    if statistics is not None and hessian is None:
        raise ValueError("error compensation needs the Hessian: declare needs = StatisticsNeed.HESSIAN")
    if hessian is None or not bool(hessian.diagonal().any()):
        if hessian is not None:
            warnings.warn("every calibration input was zero; no error is compensated", QuantizationWarning, 2)
        device = device if hessian is None else hessian.device
        alive = torch.zeros(columns, dtype=torch.bool, device=device)
        return InverseFactor(torch.eye(columns, device=device), alive, None, 0.0)
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise ValueError("the Hessian has values that are not finite")
    order = torch.argsort(diagonal, descending=True, stable=True) if activation_order else None
    dtype = torch.float64 if precision == "float64" else torch.float32
    upper, used = _factorize(hessian, damping, order, dtype, _direct if factorization == "direct" else _explicit)
    if used != damping:
        warnings.warn(
            f"the Hessian is not positive definite with damping {damping:g}; {used:g} was used", QuantizationWarning, 2
        )
    return InverseFactor(upper, diagonal == 0, order, used)


def _factorize(
    hessian: Tensor, damping: float, order: Tensor | None, dtype: torch.dtype, attempt: _Attempt
) -> tuple[Tensor, float]:
    """Return U float32 [in, in] and the damping that made the factorization possible."""
    columns = torch.arange(len(hessian), device=hessian.device) if order is None else order
    tried = damping
    while tried <= LARGEST_DAMPING:
        upper = attempt(hessian, columns, tried, dtype)
        if upper is not None and math.isfinite(float(upper.sum())):
            return upper.float(), tried
        tried = max(10 * tried, SMALLEST_RAISED_DAMPING)
    raise ValueError(f"the Hessian cannot be factorized even with damping {LARGEST_DAMPING:g}")


def _direct(hessian: Tensor, columns: Tensor, damping: float, dtype: torch.dtype) -> Tensor | None:
    """Return U by one factorization of the reversed Hessian, or `None` where it is not positive definite."""
    matrix = _damped_copy(hessian, columns.flip(0), damping, dtype)
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    # Only a matrix that is contiguous by columns is factorized without a copy: the transpose of this one.
    torch.linalg.cholesky_ex(matrix.mT, upper=True, out=(matrix.mT, info))
    return flip_in_place(invert_lower_in_place(matrix)) if _succeeded(matrix, info) else None


def _explicit(hessian: Tensor, columns: Tensor, damping: float, dtype: torch.dtype) -> Tensor | None:
    """Return U by way of the inverse Hessian, or `None` where one of both is not positive definite."""
    matrix, info = torch.linalg.cholesky_ex(_damped_copy(hessian, columns, damping, dtype))
    if not _succeeded(matrix, info):
        return None
    matrix = torch.cholesky_inverse(matrix)
    matrix, info = torch.linalg.cholesky_ex(matrix, upper=True)
    return matrix if _succeeded(matrix, info) else None


def _succeeded(factor: Tensor, info: Tensor) -> bool:
    return int(info) == 0 and bool(torch.isfinite(factor.diagonal()).all())


def _damped_copy(hessian: Tensor, columns: Tensor, damping: float, dtype: torch.dtype) -> Tensor:
    """Return H in the order of `columns`, damped, divided by a power of four near its largest diagonal element.

    The root of a power of four is a power of two, so the scale changes no digit of the factor. A dead column's
    diagonal is 1 instead of 0.
    """
    scale = unit_scale(hessian.diagonal().sqrt()) ** 2
    matrix = torch.empty(hessian.shape, dtype=dtype, device=hessian.device)
    for start in range(0, len(matrix), ROWS_AT_A_TIME):
        rows = hessian[columns[start : start + ROWS_AT_A_TIME]]
        matrix[start : start + ROWS_AT_A_TIME] = rows[:, columns] / scale
    diagonal = matrix.diagonal()
    mean = diagonal.mean()
    diagonal.masked_fill_(diagonal == 0, 1.0)
    diagonal.add_(damping * mean)
    return matrix
