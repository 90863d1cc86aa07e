"""ARB-RC (ARB-LLM, arXiv 2410.03129, section 3.4): scales of rows times scales of columns, and no mean."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowbit_billm.binarize import masked_mean
from lowbit_billm.refinement import BinaryGroup, Refinement, nearest_signs, plus_minus, ratio


def binarize_row_column(weight: Tensor, mask: Tensor, order: Literal[1, 2], how: Refinement) -> BinaryGroup:
    """Binarize a group by ARB-RC; scales are rounded before the signs are finally chosen.

    Args:
        weight: float32 [out, columns], near 1 in magnitude.
        mask: The members, bool [out, columns].
        order: Number of signs a weight.
        how: Options.
    """
    rows, columns = refine_first(weight, mask, how) if order == 1 else refine_second(weight, mask, how)[:2]
    rows, columns = how.stored(rows), how.stored_columns(columns)
    if order == 1:
        signs = (weight >= 0).unsqueeze(0)
    else:
        signs = nearest_signs(weight, *(rows.unsqueeze(2) * columns.unsqueeze(1)))
    return BinaryGroup(weight.new_zeros(len(weight)), rows, columns, signs)


def closed_form(magnitudes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return row scales [out], the mean magnitude, and column scales [columns], that of magnitude / row scale.

    Rows whose scale is 0 do not count in the means of the columns.

    Args:
        magnitudes: float32 [out, columns].
        mask: The members, bool [out, columns].
    """
    rows = masked_mean(magnitudes, mask)
    known = rows > 0
    inverse = torch.where(known, 1 / torch.where(known, rows, 1.0), 0.0)
    columns = ((magnitudes * mask) * inverse.unsqueeze(1)).sum(0) / (mask & known.unsqueeze(1)).sum(0).clamp_min(1)
    return rows, columns


def refine_first(weight: Tensor, mask: Tensor, how: Refinement) -> tuple[Tensor, Tensor]:
    """Return row scales [1, out] and column scales [1, columns]: each in turn the least-squares optimum for the other.

    Scales are never negative, so that the best signs are those of the weights at all times; no step updates them.
    """
    magnitudes, members = weight.abs() * mask, mask.float()
    rows, columns = closed_form(magnitudes, mask)

    def row_sums(columns: Tensor) -> tuple[Tensor, Tensor]:
        return magnitudes @ columns, members @ columns.square()

    def error(rows: Tensor, sums: tuple[Tensor, Tensor]) -> float:
        """Return the squared error without the sum of squares of W, which stays the same."""
        rows = rows.double()
        return float((rows.square() * sums[1].double() - 2 * rows * sums[0].double()).sum())

    sums = row_sums(columns)
    least = error(rows, sums)
    for _ in range(how.iterations):
        new_rows = ratio(*sums, how.epsilon)
        new_columns = ratio(magnitudes.T @ new_rows, members.T @ new_rows.square(), how.column_epsilon)
        sums = row_sums(new_columns)
        found = error(new_rows, sums)
        if how.keep_best and found > least:
            break
        rows, columns, least = new_rows, new_columns, found
    return rows.unsqueeze(0), columns.unsqueeze(0)


def refine_second(weight: Tensor, mask: Tensor, how: Refinement) -> tuple[Tensor, Tensor, Tensor]:
    """Return row scales [2, out], column scales [2, columns] and signs [2, out, columns].

    In turn the first order's row and column scales, the second order's, each the least-squares optimum for all
    others, and the signs as the nearest of the four sums.
    """
    members = mask.float()
    weight = weight * members
    rows, columns, signs = _start_second(weight, mask)
    least = _error(weight, members, rows, columns, signs)
    for _ in range(how.iterations):
        new_rows, new_columns = rows.clone(), columns.clone()
        for order in range(2):
            other = _values(new_rows[1 - order], new_columns[1 - order], signs[1 - order])
            target = (weight - other).mul_(members).mul_(plus_minus(signs[order]))
            squares = members @ new_columns[order].square()
            new_rows[order] = ratio(target @ new_columns[order], squares, how.epsilon)
            squares = members.T @ new_rows[order].square()
            new_columns[order] = ratio(target.T @ new_rows[order], squares, how.column_epsilon)
        new_signs = nearest_signs(weight, *(new_rows.unsqueeze(2) * new_columns.unsqueeze(1)))
        found = _error(weight, members, new_rows, new_columns, new_signs)
        if how.keep_best and found > least:
            break
        rows, columns, signs, least = new_rows, new_columns, new_signs, found
    return rows, columns, signs


def _start_second(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scales and signs of W, and then of what is left, in closed form."""
    residual, rows, columns, signs = weight, [], [], []
    for _ in range(2):
        row, column = closed_form(residual.abs(), mask)
        sign = residual >= 0
        residual = residual - _values(row, column, sign)
        rows.append(row)
        columns.append(column)
        signs.append(sign)
    return torch.stack(rows), torch.stack(columns), torch.stack(signs)


def _values(rows: Tensor, columns: Tensor, signs: Tensor) -> Tensor:
    return plus_minus(signs) * rows.unsqueeze(1) * columns


def _error(weight: Tensor, members: Tensor, rows: Tensor, columns: Tensor, signs: Tensor) -> float:
    residual = weight - _values(rows[0], columns[0], signs[0]) - _values(rows[1], columns[1], signs[1])
    return float(residual.mul_(members).square_().sum(dtype=torch.float64))
