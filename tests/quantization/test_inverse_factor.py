"""The inverse factor against inversion and factorization in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantization.layers import correlated_inputs, gaussian, statistics_of
from torch import Tensor

from lowbit import Factorization, LayerStatistics, Precision, QuantizationWarning, inverse_factor, unit_scale
from lowbit.quantization.triangular import flip_in_place, invert_lower_in_place


def reference(hessian: Tensor, damping: float) -> Tensor:
    """U by the definition, float64: the upper Cholesky factor of the inverse of the damped Hessian."""
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    return torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)


def normalized(upper: Tensor) -> Tensor:
    return upper.double() / upper.double()[0, 0]


@pytest.mark.parametrize("factorization", ["direct", "explicit"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("columns", [1, 2, 37, 300])
def test_equals_the_definition(columns: int, precision: Precision, factorization: Factorization) -> None:
    statistics = statistics_of(correlated_inputs(2 * columns + 5, columns))
    found = inverse_factor(statistics, columns, 0.01, precision=precision, factorization=factorization)
    assert statistics.hessian is not None
    tolerance = 1e-4 if precision == "float32" else 1e-6
    expected = normalized(reference(statistics.hessian, 0.01))
    assert torch.allclose(normalized(found.upper), expected, rtol=tolerance, atol=tolerance * float(expected.max()))
    assert torch.equal(found.upper, found.upper.triu())
    assert bool((found.upper.diagonal() > 0).all())
    assert found.damping == 0.01
    assert found.order is None


def test_the_diagonal_squared_is_that_of_the_inverse_of_the_columns_not_yet_quantized() -> None:
    statistics = statistics_of(correlated_inputs(80, 12))
    found = inverse_factor(statistics, 12, 0.01)
    assert statistics.hessian is not None
    damped = statistics.hessian.double() + 0.01 * statistics.hessian.double().diagonal().mean() * torch.eye(12)
    trailing = torch.stack([torch.linalg.inv(damped[j:, j:])[0, 0] for j in range(12)])
    squared = found.upper.double().diagonal().square()
    assert torch.allclose(squared / squared[0], trailing / trailing[0], rtol=1e-4)
    whole = torch.linalg.inv(damped).diagonal()
    assert torch.allclose(found.inverse_diagonal().double() / squared[0], whole / trailing[0], rtol=1e-4)


def test_activation_order_factorizes_the_permuted_hessian() -> None:
    statistics = statistics_of(correlated_inputs(90, 20))
    assert statistics.hessian is not None
    found = inverse_factor(statistics, 20, 0.01, activation_order=True)
    assert found.order is not None
    diagonal = statistics.hessian.diagonal()[found.order]
    assert bool((diagonal[:-1] >= diagonal[1:]).all())
    permuted = statistics.hessian[found.order][:, found.order]
    assert torch.allclose(normalized(found.upper), normalized(reference(permuted, 0.01)), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([1e-30, 1e-12, 1.0, 3.0, 1e12, 1e30]))
def test_the_scale_of_the_inputs_does_not_matter(scale: float) -> None:
    statistics = statistics_of(correlated_inputs(40, 10))
    assert statistics.hessian is not None
    scaled = LayerStatistics(40, statistics.second_moment * scale, statistics.hessian * scale)
    first, second = inverse_factor(statistics, 10), inverse_factor(scaled, 10)
    assert torch.allclose(normalized(first.upper), normalized(second.upper), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("factorization", ["direct", "explicit"])
def test_a_rank_deficient_hessian_without_damping_raises_it_and_says_so(factorization: Factorization) -> None:
    statistics = statistics_of(correlated_inputs(4, 30))
    with pytest.warns(QuantizationWarning, match="not positive definite with damping 0; "):
        found = inverse_factor(statistics, 30, damping=0, factorization=factorization)
    assert found.damping > 0
    assert bool(torch.isfinite(found.upper).all())


def test_a_rank_deficient_hessian_with_damping_is_factorized_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inverse_factor(statistics_of(correlated_inputs(1, 64)), 64).damping == 0.01


def test_columns_that_were_always_zero_are_dead_and_stand_alone() -> None:
    inputs = correlated_inputs(50, 8)
    inputs[:, [2, 5]] = 0
    found = inverse_factor(statistics_of(inputs), 8)
    assert found.dead.tolist() == [False, False, True, False, False, True, False, False]
    assert found.upper[2, 3:].count_nonzero() == 0
    assert found.upper[:2, 2].count_nonzero() == 0


def test_without_statistics_nothing_is_compensated() -> None:
    found = inverse_factor(None, 5)
    assert torch.equal(found.upper, torch.eye(5))
    assert not bool(found.dead.any())


def test_inputs_that_were_all_zero_count_as_no_statistics_and_are_reported() -> None:
    with pytest.warns(QuantizationWarning, match="every calibration input was zero"):
        found = inverse_factor(statistics_of(torch.zeros(10, 5)), 5)
    assert torch.equal(found.upper, torch.eye(5))
    assert not bool(found.dead.any())


def test_statistics_without_a_hessian_are_refused() -> None:
    with pytest.raises(ValueError, match=r"StatisticsNeed\.HESSIAN"):
        inverse_factor(LayerStatistics(3, torch.ones(4)), 4)


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    hessian = torch.eye(3)
    hessian[1, 1] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        inverse_factor(LayerStatistics(3, hessian.diagonal(), hessian), 3)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 200])
def test_triangular_matrices_are_inverted_in_place(size: int) -> None:
    lower = gaussian(size, size).double().tril() / size**0.5
    lower.diagonal().add_(2)
    inverse = invert_lower_in_place(lower.clone(), leaf=16)
    assert torch.allclose(inverse @ lower, torch.eye(size, dtype=torch.float64), atol=1e-10)
    assert torch.equal(inverse, inverse.tril())


@pytest.mark.parametrize("size", [1, 2, 7, 10])
def test_a_matrix_is_flipped_in_place(size: int) -> None:
    matrix = gaussian(size, size)
    assert torch.equal(flip_in_place(matrix.clone(), rows=3), matrix.flip(0, 1))


@given(st.floats(min_value=0, allow_infinity=False, width=32))
def test_the_unit_scale_brings_the_largest_magnitude_between_one_and_two(largest: float) -> None:
    scale = unit_scale(torch.tensor([0.0, -largest]))
    assert torch.tensor(scale).frexp().mantissa == 0.5
    if largest > 2e-38:
        assert 1 <= largest / scale < 4
    assert torch.tensor([largest]) / scale * scale == torch.tensor([largest])


def test_no_values_have_the_unit_scale_one() -> None:
    assert unit_scale(torch.empty(0, 3)) == 1


def test_without_statistics_the_factor_is_made_where_the_weight_is() -> None:
    found = inverse_factor(None, 5, device=torch.device("meta"))
    assert found.upper.device.type == found.dead.device.type == "meta"
