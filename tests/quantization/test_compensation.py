"""Error compensation against plain loops and closed-form optima in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantization.layers import correlated_inputs, gaussian, output_error, statistics_of
from torch import Tensor

from lowbit import ColumnBlock, InverseFactor, column_blocks, compensate_blocks, compensate_columns, inverse_factor
from lowbit.quantization.compensation import BlockError, working_copy

OUT, IN = 6, 24


def rounded(values: Tensor) -> Tensor:
    return (values * 2).round() / 2


def by_columns(weight: Tensor, factor: InverseFactor, block_size: int, cuts: range | tuple[()] = ()) -> Tensor:
    """Round to halves with `compensate_columns`; the result is in the factor's order."""
    done: dict[int, Tensor] = {}

    def start_block(block: ColumnBlock) -> Callable[[int, Tensor], Tensor]:
        def round_column(position: int, column: Tensor) -> Tensor:
            done[block.start + position] = rounded(column)
            return done[block.start + position]

        return round_column

    bounds = column_blocks(weight.shape[1], block_size, cuts)
    compensate_columns(working_copy(weight, factor), factor, bounds, start_block)
    return torch.stack([done[j] for j in range(weight.shape[1])], 1)


def by_blocks(weight: Tensor, factor: InverseFactor, block_size: int, error: BlockError) -> Tensor:
    done: list[Tensor] = []

    def quantize_block(block: ColumnBlock) -> Tensor:
        done.append(rounded(block.weight))
        return done[-1]

    bounds = column_blocks(weight.shape[1], block_size)
    compensate_blocks(working_copy(weight, factor), factor, bounds, quantize_block, error)
    return torch.cat(done, 1)


def one_column_after_the_other(weight: Tensor, hessian: Tensor) -> Tensor:
    """OBS by its definition, float64: after each column the later ones move to the optimum for the errors so far."""
    weight, hessian = weight.double(), hessian.double()
    original = weight.clone()
    for j in range(weight.shape[1]):
        weight[:, j] = rounded(weight[:, j])
        error = weight[:, : j + 1] - original[:, : j + 1]
        rest = slice(j + 1, None)
        # Minimizes tr(E H E^T) over the columns that are free.
        weight[:, rest] = (
            original[:, rest] - torch.linalg.solve(hessian[rest, rest], hessian[rest, : j + 1] @ error.T).T
        )
    return weight


@pytest.mark.parametrize("block_size", [1, 5, 8, 24, 100])
def test_columns_follow_the_definition_of_optimal_brain_surgeon(block_size: int) -> None:
    statistics = statistics_of(correlated_inputs(100, IN))
    weight = gaussian(OUT, IN, seed=5)
    assert statistics.hessian is not None
    damped = statistics.hessian + 0.01 * statistics.hessian.diagonal().mean() * torch.eye(IN)
    found = by_columns(weight, inverse_factor(statistics, IN), block_size)
    assert torch.equal(found.double(), one_column_after_the_other(weight, damped))


def test_where_blocks_start_does_not_matter_to_columns() -> None:
    factor = inverse_factor(statistics_of(correlated_inputs(100, IN)), IN)
    weight = gaussian(OUT, IN, seed=6)
    assert torch.equal(by_columns(weight, factor, 8), by_columns(weight, factor, 10, range(0, IN, 3)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), block_size=st.integers(1, 30))
def test_an_identity_hessian_compensates_nothing(seed: int, block_size: int) -> None:
    factor = inverse_factor(statistics_of(IN**0.5 * torch.eye(IN)), IN)
    weight = gaussian(OUT, IN, seed=seed)
    assert torch.equal(by_columns(weight, factor, block_size), rounded(weight))
    for error in ("diagonal", "triangular"):
        assert torch.equal(by_blocks(weight, factor, block_size, error), rounded(weight))


def rest_after_first_block(weight: Tensor, factor: InverseFactor, first: Tensor, error: BlockError) -> Tensor:
    """Return the first block as given and the later columns as compensated for it, not yet quantized."""
    columns = working_copy(weight, factor)
    compensate_blocks(columns, factor, [(0, first.shape[1])], lambda block: first, error)
    return torch.cat([first, columns[first.shape[1] :].T], 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, IN - 1))
def test_the_triangular_block_error_attains_the_optimum_for_a_given_block(seed: int, size: int) -> None:
    statistics = statistics_of(correlated_inputs(60, IN, seed=seed))
    assert statistics.hessian is not None
    hessian = statistics.hessian.double() + 0.01 * statistics.hessian.double().diagonal().mean() * torch.eye(IN)
    factor = inverse_factor(statistics, IN, precision="float64")
    weight = gaussian(OUT, IN, seed=seed + 9)
    first = rounded(weight[:, :size])
    error = (weight[:, :size] - first).double()
    best = weight.double().clone()
    best[:, :size] = first
    best[:, size:] += torch.linalg.solve(hessian[size:, size:], hessian[size:, :size] @ error.T).T
    optimum = output_error(weight, best, hessian)
    exact = output_error(weight, rest_after_first_block(weight, factor, first, "triangular"), hessian)
    diagonal = output_error(weight, rest_after_first_block(weight, factor, first, "diagonal"), hessian)
    assert exact == pytest.approx(optimum, rel=1e-4, abs=1e-9)
    assert exact <= diagonal * (1 + 1e-5) + 1e-9


def test_with_blocks_of_one_column_all_three_are_the_same() -> None:
    factor = inverse_factor(statistics_of(correlated_inputs(100, IN)), IN)
    weight = gaussian(OUT, IN, seed=7)
    columns = by_columns(weight, factor, 8)
    assert torch.equal(by_blocks(weight, factor, 1, "diagonal"), columns)
    assert torch.equal(by_blocks(weight, factor, 1, "triangular"), columns)


def test_compensation_lowers_the_error_of_outputs_and_raises_that_of_weights() -> None:
    statistics = statistics_of(correlated_inputs(200, IN))
    assert statistics.hessian is not None
    weight = gaussian(64, IN, seed=8)
    compensated = by_columns(weight, inverse_factor(statistics, IN), 8)
    assert output_error(weight, compensated, statistics.hessian) < output_error(
        weight, rounded(weight), statistics.hessian
    )
    assert (weight - compensated).square().sum() > (weight - rounded(weight)).square().sum()


def test_dead_columns_become_zero_and_activation_order_rules_the_working_copy() -> None:
    inputs = correlated_inputs(50, 6)
    inputs[:, 4] = 0
    weight = gaussian(3, 6)
    plain = working_copy(weight, inverse_factor(statistics_of(inputs), 6))
    assert torch.equal(plain.T[:, [0, 1, 2, 3, 5]], weight[:, [0, 1, 2, 3, 5]])
    assert plain[4].count_nonzero() == 0
    ordered = inverse_factor(statistics_of(inputs), 6, activation_order=True)
    assert ordered.order is not None
    assert int(ordered.order[-1]) == 4
    assert torch.equal(working_copy(weight, ordered), plain[ordered.order])
    assert plain.is_contiguous()


def test_a_block_shows_its_own_weights_and_all_that_remain() -> None:
    factor = inverse_factor(None, 7)
    weight = gaussian(2, 7)
    seen: list[tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []

    def quantize_block(block: ColumnBlock) -> Tensor:
        shapes = tuple(block.weight.shape), tuple(block.remaining.shape), tuple(block.factor.shape)
        seen.append((block.start, block.stop, *shapes))
        return block.weight

    compensate_blocks(working_copy(weight, factor), factor, column_blocks(7, 4), quantize_block)
    assert seen == [(0, 4, (2, 4), (2, 7), (4, 4)), (4, 7, (2, 3), (2, 3), (3, 3))]


def test_blocks_also_start_at_cuts() -> None:
    assert column_blocks(10, 4, (0, 3, 6, 10, 12)) == [(0, 3), (3, 4), (4, 6), (6, 8), (8, 10)]
    assert column_blocks(3, 128) == [(0, 3)]


def test_the_number_of_threads_changes_results_within_rounding_only() -> None:
    statistics = statistics_of(correlated_inputs(300, 256))
    weight = gaussian(64, 256, seed=3)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            factor = inverse_factor(statistics, 256)
            columns = working_copy(weight, factor)
            compensate_blocks(columns, factor, column_blocks(256, 64), lambda block: rounded(block.weight))
            found.append(columns)
    finally:
        torch.set_num_threads(threads)
    assert (found[0] - found[1]).abs().max() <= 1e-4 * found[0].abs().max()
