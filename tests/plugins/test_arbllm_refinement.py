"""ARB-LLM's refinements against direct float64 formulas, written row by row and weight by weight."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_billm import alternating, calibrated, row_column
from lowbit_billm.refinement import Refinement, nearest_signs, plus_minus
from torch import Tensor

EXACT = Refinement(
    iterations=15,
    calibrated_iterations=15,
    epsilon=0.0,
    column_epsilon=0.0,
    keep_best=False,
    stored=lambda values: values,
    stored_columns=lambda values: values,
)
CASES = [(name, order) for name in ("arb", "arb-x", "arb-rc") for order in (1, 2)]

each_case = pytest.mark.parametrize(("name", "order"), CASES, ids=[f"{name}-order{order}" for name, order in CASES])


def problem(seed: int, rows: int = 7, columns: int = 24, share: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, members, and moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(columns, generator=generator).add(0.3)
    mask = torch.rand(rows, columns, generator=generator) < share
    inputs = torch.randn(3 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return weight + 0.1, mask, inputs.T @ inputs


def refined(name: str, order: int, weight: Tensor, mask: Tensor, moments: Tensor, how: Refinement) -> Tensor:
    """Return the group's values, float64, as they are after the given rounds, before signs are chosen once more."""
    if name == "arb-rc":
        if order == 1:
            rows, columns = row_column.refine_first(weight, mask, how)
            return (plus_minus(weight >= 0) * rows[0].unsqueeze(1) * columns[0]).double()
        rows, columns, signs = row_column.refine_second(weight, mask, how)
        return (plus_minus(signs) * rows.unsqueeze(2) * columns.unsqueeze(1)).sum(0).double()
    if order == 1:
        mean, scale = alternating.refine_first(weight, mask, how)
        values, signs = torch.stack([mean, scale]), (weight >= mean.unsqueeze(1)).unsqueeze(0)
    else:
        *parts, signs = alternating.refine_second(weight, mask, how)
        values = torch.stack(parts)
    if name == "arb-x":
        values = calibrated.refine_calibrated(weight, mask, values, signs, moments, how)
    return (values[0].unsqueeze(1) + (plus_minus(signs) * values[1:].unsqueeze(2)).sum(0)).double()


def objective(name: str, weight: Tensor, mask: Tensor, moments: Tensor, values: Tensor) -> Tensor:
    """Return the squared error of the members, or Tr(R S R^T), of every row, float64."""
    residual = (weight.double() - values) * mask
    if name == "arb-x":
        return torch.einsum("oi,ij,oj->o", residual, moments.double(), residual)
    return residual.square().sum(1)


# Direct formulas: one row, members only, float64.


def sign(values: Tensor) -> Tensor:
    return torch.where(values >= 0, 1.0, -1.0).double()


def nearest_sums(target: Tensor, scales: list[Tensor | float]) -> list[Tensor]:
    """Try all sums of +-scale for every weight."""
    choices = list(product((-1.0, 1.0), repeat=len(scales)))
    sums = torch.stack(
        [sum(s * torch.as_tensor(a) * torch.ones_like(target) for s, a in zip(c, scales, strict=True)) for c in choices]
    )
    best = (target - sums).abs().argmin(0)
    table = torch.tensor(choices, dtype=torch.float64)
    return [table[best, i] for i in range(len(scales))]


def arb_of_row(w: Tensor, order: int, rounds: int) -> tuple[float, list[float], list[Tensor]]:
    mean, scales, signs, rest = 0.0, [], [], w
    for _ in range(order):
        step = float(rest.mean())
        mean, rest = mean + step, rest - step
        scales.append(float(rest.abs().mean()))
        signs.append(sign(rest))
        rest = rest - scales[-1] * signs[-1]
    for _ in range(rounds):
        mean += float((w - mean - sum(a * b for a, b in zip(scales, signs, strict=True))).mean())
        for k in range(order):
            others = sum((scales[j] * signs[j] for j in range(order) if j != k), torch.zeros_like(w))
            scales[k] = float((signs[k] * (w - mean - others)).mean())
        signs = nearest_sums(w - mean, list(scales))
    return mean, scales, signs


def arb_x_of_row(w: Tensor, s: Tensor, order: int, rounds: int) -> Tensor:
    mean, scales, signs = arb_of_row(w, order, rounds)
    one = torch.ones_like(w)
    for _ in range(rounds):
        mean = float(one @ s @ (w - sum(a * b for a, b in zip(scales, signs, strict=True))) / (one @ s @ one))
        for k in range(order):
            others = sum((scales[j] * signs[j] for j in range(order) if j != k), torch.zeros_like(w))
            scales[k] = float(signs[k] @ s @ (w - mean - others) / (signs[k] @ s @ signs[k]))
    return mean + sum(a * b for a, b in zip(scales, signs, strict=True))


def by_rows(name: str, order: int, weight: Tensor, mask: Tensor, moments: Tensor, rounds: int) -> Tensor:
    values = torch.zeros(weight.shape, dtype=torch.float64)
    for i, members in enumerate(mask):
        if not members.any():
            continue
        w = weight[i, members].double()
        if name == "arb":
            mean, scales, signs = arb_of_row(w, order, rounds)
            values[i, members] = mean + sum(a * b for a, b in zip(scales, signs, strict=True))
        else:
            values[i, members] = arb_x_of_row(w, moments[members][:, members].double(), order, rounds)
    return values


def row_column_by_weights(order: int, weight: Tensor, mask: Tensor, rounds: int) -> Tensor:
    """ARB-RC with loops over rows and columns; sums over the members of each."""
    w, count = weight.double() * mask, weight.shape
    row, column, signs, rest = [], [], [], w.clone()
    for _ in range(order):
        a = torch.stack(
            [r[m].abs().mean() if m.any() else torch.tensor(0.0).double() for r, m in zip(rest, mask, strict=True)]
        )
        b = torch.zeros(count[1], dtype=torch.float64)
        for j in range(count[1]):
            ratios = [abs(float(rest[i, j] / a[i])) for i in range(count[0]) if mask[i, j] and a[i] > 0]
            b[j] = sum(ratios) / len(ratios) if ratios else 0.0
        row.append(a), column.append(b), signs.append(sign(rest))
        rest = (rest - torch.outer(a, b) * signs[-1]) * mask
    for _ in range(rounds):
        for k in range(order):
            others = sum(
                (torch.outer(row[j], column[j]) * signs[j] for j in range(order) if j != k), torch.zeros_like(w)
            )
            target = (w - others) * mask
            for i in range(count[0]):
                v = column[k] * signs[k][i] * mask[i]
                row[k][i] = v @ target[i] / (v @ v) if v.any() else 0.0
            for j in range(count[1]):
                v = row[k] * signs[k][:, j] * mask[:, j]
                column[k][j] = v @ target[:, j] / (v @ v) if v.any() else 0.0
        if order == 2:
            signs = nearest_sums(w, [torch.outer(row[k], column[k]) for k in range(2)])
    return sum(torch.outer(a, b) * s for a, b, s in zip(row, column, signs, strict=True))


@each_case
@pytest.mark.parametrize("rounds", [0, 1, 2, 15])
def test_refinement_equals_the_direct_formulas(name: str, order: int, rounds: int) -> None:
    weight, mask, moments = problem(rounds)
    mask[3] = False
    mask[:, 5] = False
    how = replace(EXACT, iterations=rounds, calibrated_iterations=rounds)
    found = refined(name, order, weight, mask, moments, how)
    if name == "arb-rc":
        wanted = row_column_by_weights(order, weight, mask, rounds)
    else:
        wanted = by_rows(name, order, weight, mask, moments, rounds)
    assert torch.allclose(found[mask], wanted[mask], atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(CASES),
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    columns=st.integers(1, 20),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    keep_best=st.booleans(),
)
def test_no_round_raises_the_objective(
    case: tuple[str, int], seed: int, rows: int, columns: int, share: float, keep_best: bool
) -> None:
    name, order = case
    weight, mask, moments = problem(seed, rows, columns, share)
    energy = objective(name, weight, mask, moments, torch.zeros_like(weight).double())
    before = None
    for rounds in range(7):
        # The second phase of ARB-X has an objective of its own, so the first one's rounds stay the same.
        iterations = 15 if name == "arb-x" else rounds
        how = replace(EXACT, iterations=iterations, calibrated_iterations=rounds, keep_best=keep_best)
        found = objective(name, weight, mask, moments, refined(name, order, weight, mask, moments, how))
        found, slack = (found.sum(), energy.sum() * 1e-5) if name == "arb-rc" else (found, energy * 1e-5)
        if before is not None:
            assert bool((found <= before + slack + 1e-9).all())
        before = found


@each_case
def test_the_guard_refuses_rounds_that_an_epsilon_makes_worse(name: str, order: int) -> None:
    weight, mask, moments = problem(4, rows=12)
    spoiled = replace(EXACT, epsilon=50.0, column_epsilon=50.0)
    start = refined(name, order, weight, mask, moments, replace(EXACT, iterations=0, calibrated_iterations=0))
    worst = objective(name, weight, mask, moments, start).sum()
    if name != "arb-x":  # its second phase uses no epsilon
        values = refined(name, order, weight, mask, moments, spoiled)
        assert objective(name, weight, mask, moments, values).sum() > worst
    else:
        start = refined(name, order, weight, mask, moments, replace(spoiled, keep_best=True, calibrated_iterations=0))
        worst = objective(name, weight, mask, moments, start).sum()
    values = refined(name, order, weight, mask, moments, replace(spoiled, keep_best=True))
    assert objective(name, weight, mask, moments, values).sum() <= worst * (1 + 1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_arb_lowers_the_error_of_gaussian_weights(order: int) -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(weight, dtype=torch.bool)
    errors = []
    for rounds in (0, 15):
        values = refined("arb", order, weight, mask, torch.eye(128), replace(EXACT, iterations=rounds))
        errors.append(float((weight - values).square().mean()))
    assert errors[1] < errors[0]
    optimum = 1 - 2 / torch.pi if order == 1 else 0.1175  # of Lloyd-Max quantizers with 2 and 4 levels
    assert abs(errors[1] - optimum) < 0.02


@settings(max_examples=200, deadline=None)
@given(
    target=st.floats(-4, 4, width=32),
    scales=st.tuples(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32)),
)
def test_the_nearest_of_four_sums_is_found(target: float, scales: tuple[float, float]) -> None:
    first, second = torch.tensor([[scales[0]]]), torch.tensor([[scales[1]]])
    signs = plus_minus(nearest_signs(torch.tensor([[target]]), first, second)).double()
    found = abs(target - float(signs[0] * first.double() + signs[1] * second.double()))
    best = min(abs(target - a * scales[0] - b * scales[1]) for a, b in product((-1, 1), repeat=2))
    assert found <= best + 1e-6


def test_column_scales_are_the_least_squares_optimum_for_the_row_scales() -> None:
    weight, mask, _ = problem(8)
    rows, columns = row_column.refine_first(weight, mask, replace(EXACT, iterations=1))
    for j in range(weight.shape[1]):
        members = mask[:, j]
        design = (rows[0, members] * weight[members, j].sign()).double().unsqueeze(1)
        wanted = torch.linalg.lstsq(design, weight[members, j].double().unsqueeze(1)).solution
        assert float(columns[0, j]) == pytest.approx(float(wanted), rel=1e-5)


def test_row_and_column_scales_are_each_the_optimum_for_the_other_at_the_end() -> None:
    weight, mask, _ = problem(9)
    rows, columns = row_column.refine_first(weight, mask, replace(EXACT, iterations=500))
    for i in range(weight.shape[0]):
        members = mask[i]
        design = (columns[0, members] * weight[i, members].sign()).double().unsqueeze(1)
        wanted = torch.linalg.lstsq(design, weight[i, members].double().unsqueeze(1)).solution
        assert float(rows[0, i]) == pytest.approx(float(wanted), rel=1e-4)


def test_calibrated_values_are_the_least_squares_optimum_for_their_signs() -> None:
    weight, mask, moments = problem(10)
    mean, scale = alternating.refine_first(weight, mask, EXACT)
    signs = (weight >= mean.unsqueeze(1)).unsqueeze(0)
    how = replace(EXACT, calibrated_iterations=2000)
    found = calibrated.refine_calibrated(weight, mask, torch.stack([mean, scale]), signs, moments, how)
    root = torch.linalg.cholesky(moments.double())
    for i, members in enumerate(mask):
        design = torch.stack([members.double(), plus_minus(signs[0, i]).double() * members], 1)
        target = (weight[i] * members).double()
        wanted = torch.linalg.lstsq(root.T @ design, root.T @ target.unsqueeze(1)).solution.squeeze(1)
        assert torch.allclose(found[:, i].double(), wanted, atol=1e-3)


@pytest.mark.parametrize("order", [1, 2])
def test_moments_that_are_zero_or_of_low_rank_leave_finite_values(order: int) -> None:
    weight, mask, _ = problem(11)
    vector = torch.linspace(-1, 1, weight.shape[1])
    for moments in (torch.zeros(24, 24), torch.outer(vector, vector), torch.full((24, 24), 1e30)):
        values = refined("arb-x", order, weight, mask, moments, replace(EXACT, keep_best=True))
        assert bool(torch.isfinite(values).all())
        assert values.abs().max() < 100
