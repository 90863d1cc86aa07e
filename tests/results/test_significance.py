from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.results.samples import Aggregate, DocumentValues, bits_per_byte, mean, perplexity
from lowbit.results.significance import holm, mcnemar_exact, paired_difference, permutation_p_value


def scores(values: list[float]) -> DocumentValues:
    array = np.asarray(values, dtype=np.float64)
    return DocumentValues(array, np.ones_like(array), mean)


def enumerated_p_value(disagreements: int, only_first: int) -> float:
    """The share of all ways to split the disagreements that are no more likely than the one that was seen."""
    seen = math.comb(disagreements, only_first)
    splits = [sum(way) for way in itertools.product((0, 1), repeat=disagreements)]
    return sum(math.comb(disagreements, split) <= seen for split in splits) / len(splits)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14))
def test_mcnemar_agrees_with_counting_every_split(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.asarray(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    found = mcnemar_exact(first, second)
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == pytest.approx(enumerated_p_value(only_first + only_second, only_first))


def test_the_bootstrap_interval_of_a_mean_agrees_with_the_normal_law() -> None:
    drawn = np.random.default_rng(0)
    first, second = drawn.normal(0, 1, 2000), drawn.normal(0.05, 1, 2000)
    found = paired_difference(scores(list(first)), scores(list(second)), seed=1)
    difference = second - first
    error = difference.std() / math.sqrt(len(difference))
    assert found.difference == pytest.approx(difference.mean())
    assert found.lower == pytest.approx(difference.mean() - 1.96 * error, abs=0.05 * error * 2)
    assert found.upper == pytest.approx(difference.mean() + 1.96 * error, abs=0.05 * error * 2)
    normal = math.erfc(abs(difference.mean() / error) / math.sqrt(2))
    assert found.p_value == pytest.approx(normal, abs=0.015)


def test_the_bootstrap_of_few_documents_agrees_with_all_resamples() -> None:
    first, second = [0.1, 0.5, 0.9, 0.4], [0.3, 0.4, 1.0, 0.8]
    differences = np.asarray(second) - np.asarray(first)
    every = np.asarray([differences[list(way)].mean() for way in itertools.product(range(4), repeat=4)])
    found = paired_difference(scores(first), scores(second), seed=0, resamples=40_000)
    assert found.lower == pytest.approx(np.quantile(every, 0.025), abs=0.02)
    assert found.upper == pytest.approx(np.quantile(every, 0.975), abs=0.02)


def test_a_perplexity_is_resampled_as_it_is_aggregated() -> None:
    drawn = np.random.default_rng(3)
    words = drawn.integers(5, 200, 400).astype(np.float64)
    first, second = -words * drawn.normal(1.0, 0.1, 400), -words * drawn.normal(1.02, 0.1, 400)
    one, other = DocumentValues(first, words, perplexity), DocumentValues(second, words, perplexity)
    found = paired_difference(one, other, seed=0)
    assert found.difference == pytest.approx(
        math.exp(-second.sum() / words.sum()) - math.exp(-first.sum() / words.sum())
    )
    again = np.random.default_rng(9)
    draws = []
    for _ in range(4000):
        rows = again.integers(0, 400, 400)
        total = words[rows].sum()
        draws.append(math.exp(-second[rows].sum() / total) - math.exp(-first[rows].sum() / total))
    width = found.upper - found.lower
    assert found.lower == pytest.approx(np.quantile(draws, 0.025), abs=0.06 * width)
    assert found.upper == pytest.approx(np.quantile(draws, 0.975), abs=0.06 * width)


def test_bits_per_byte_are_log_likelihoods_in_bits() -> None:
    values = DocumentValues(np.asarray([-8.0, -4.0]), np.asarray([10.0, 2.0]), bits_per_byte)
    assert values.total == pytest.approx(1 / math.log(2))


def test_equal_runs_differ_by_nothing_and_one_document_shows_nothing() -> None:
    same = paired_difference(scores([0.0, 1.0, 1.0]), scores([0.0, 1.0, 1.0]), seed=0, resamples=200)
    assert (same.difference, same.lower, same.upper, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert paired_difference(scores([0.0]), scores([1.0]), seed=0).p_value == 1.0


def test_the_seed_decides_the_draws() -> None:
    one, other = scores([0.1, 0.7, 0.4, 0.9, 0.2]), scores([0.3, 0.5, 0.6, 1.0, 0.1])
    assert paired_difference(one, other, 4, 500) == paired_difference(one, other, 4, 500)
    assert paired_difference(one, other, 4, 500) != paired_difference(one, other, 5, 500)


def exchanged_everywhere(first: DocumentValues, second: DocumentValues) -> float:
    """The share of all ways to exchange the answers to documents that give a difference at least as large."""
    differences = []
    for way in itertools.product((False, True), repeat=len(first.values)):
        one, other = (
            DocumentValues(np.where(way, b.values, a.values), np.where(way, b.weights, a.weights), a.aggregate)
            for a, b in ((first, second), (second, first))
        )
        differences.append(abs(other.total - one.total))
    return float(np.mean(np.asarray(differences) >= differences[0] * (1 - 1e-9)))


@pytest.mark.parametrize("aggregate", [mean, perplexity, bits_per_byte])
@pytest.mark.parametrize("documents", [1, 2, 5, 9])
def test_the_p_value_agrees_with_every_exchange_of_answers(aggregate: Aggregate, documents: int) -> None:
    drawn = np.random.default_rng(documents)
    words = drawn.integers(5, 50, (2, documents)).astype(np.float64)
    answers = -words * drawn.normal(2.0, 0.2, (2, documents))
    one, other = (DocumentValues(answers[n], words[n], aggregate) for n in (0, 1))
    exact = exchanged_everywhere(one, other)
    assert paired_difference(one, other, seed=0, resamples=1000).p_value == pytest.approx(exact)
    assert exact >= 2.0 ** (1 - documents)
    if documents == 9:
        assert permutation_p_value(one, other, seed=0, resamples=255) == pytest.approx(exact, abs=0.1)


def test_few_documents_that_all_got_worse_show_nothing_and_many_do() -> None:
    def p_value(documents: int) -> float:
        return paired_difference(scores([1.0] * documents), scores([0.9] * documents), 0, 999).p_value

    assert [p_value(documents) for documents in (1, 2, 5, 6)] == [1.0, 0.5, 1 / 16, 1 / 32]
    assert p_value(200) == 1 / 1000


@pytest.mark.slow
@pytest.mark.parametrize("documents", [2, 3, 5, 10, 20, 40])
def test_equal_models_are_called_different_in_no_more_than_one_case_of_twenty(documents: int) -> None:
    drawn = np.random.default_rng(documents)
    words = drawn.integers(5, 50, documents).astype(np.float64)
    alarms = {mean: 0, perplexity: 0}
    for _ in range(1000):
        answers = -words * (2 + 0.2 * drawn.normal(size=(2, documents)))
        for aggregate in alarms:
            one, other = (DocumentValues(answers[n], words, aggregate) for n in (0, 1))
            alarms[aggregate] += permutation_p_value(one, other, 0, 999) < 0.05
    assert all(number <= 75 for number in alarms.values())
    assert documents < 6 or all(number >= 25 for number in alarms.values())


@pytest.mark.slow
def test_equal_models_of_many_documents_are_called_different_in_one_case_of_twenty() -> None:
    drawn = np.random.default_rng(0)
    alarms = sum(
        paired_difference(scores(list(drawn.normal(size=100))), scores(list(drawn.normal(size=100))), 0, 999).p_value
        < 0.05
        for _ in range(1000)
    )
    assert 30 <= alarms <= 80


def test_holm_agrees_with_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_order_and_lies_between_the_value_and_bonferronis(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p_value, found in zip(p_values, corrected, strict=True):
        assert p_value <= found <= min(1.0, len(p_values) * p_value) + 1e-12
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    assert [corrected[position] for position in order] == sorted(corrected)
