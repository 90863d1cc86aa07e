"""Tests for paired samples: McNemar's exact test, the paired permutation test and bootstrap, Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowbit.results.samples import DocumentValues, Values, mean

RESAMPLES = 10_000
_BATCH_VALUES = 2_000_000
"""Resampled values that are in memory at a time."""
_EQUAL = 1e-9
"""Differences that are equal on paper may differ by this share when they are summed in another order."""


@dataclass(frozen=True)
class McNemar:
    """What two models did to the documents on which they disagree.

    Args:
        only_first: Documents that only the first one has right.
        only_second: Documents that only the second one has right.
        p_value: Probability of a split at least as uneven if neither were better.
    """

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class PairedDifference:
    """A metric's difference, its interval by the bootstrap, and its p value by permutation.

    Args:
        difference: Second minus first, of all documents.
        lower: Lower end of the interval.
        upper: Upper end of the interval.
        p_value: What `permutation_p_value` returns.
    """

    difference: float
    lower: float
    upper: float
    p_value: float


def mcnemar_exact(first: Values, second: Values) -> McNemar:
    """Test whether two models answer equally many documents right, by those on which they disagree.

    Under the hypothesis each disagreement falls either way with probability 1/2: a two-sided binomial test
    (McNemar 1947, in its exact form).

    Args:
        first: 1 where the first model is right, else 0; [documents].
        second: The same of the second model.
    """
    from scipy.stats import binomtest

    only_first = int(np.sum((first == 1) & (second == 0)))
    only_second = int(np.sum((first == 0) & (second == 1)))
    total = only_first + only_second
    p_value = float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0
    return McNemar(only_first, only_second, p_value)


def paired_difference(
    first: DocumentValues, second: DocumentValues, seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> PairedDifference:
    """Return the difference of the metric, its interval and its p value.

    Percentile interval over documents drawn with replacement, the same for both models (Efron and Tibshirani 1993,
    chapter 13). Of few documents it is too narrow, so that the p value is not read off it.

    Args:
        first: Values of the first model.
        second: Values of the second model, for the same documents in the same order.
        seed: Decides the draws.
        resamples: Number of draws, of the interval and of the p value.
        confidence: Of the interval.
    """
    from scipy.stats import bootstrap

    data, difference = _resampled(first, second)
    observed = float(difference(*data))
    if len(first.values) < 2:
        return PairedDifference(observed, observed, observed, 1.0)
    drawn = bootstrap(
        data,
        difference,
        paired=len(data) > 1,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        batch=max(1, _BATCH_VALUES // len(first.values)),
        **_seeded(seed),
    )
    interval = drawn.confidence_interval
    p_value = permutation_p_value(first, second, seed, resamples)
    return PairedDifference(observed, float(interval.low), float(interval.high), p_value)


def permutation_p_value(first: DocumentValues, second: DocumentValues, seed: int, resamples: int = RESAMPLES) -> float:
    """Test whether it matters which of the two models gave which answer.

    Under the hypothesis the two answers to a document may be exchanged, as by the toss of a coin for each document. The
    p value is the share of exchanges with a difference at least as large, either way (Fisher 1935). All of them are
    looked at where there are no more than `resamples` up to the direction; else as many are drawn, and one more is
    counted, so that no number of draws shows a probability of zero (Phipson and Smyth 2010). With n documents
    it is never below 2^-(n-1).

    Args:
        first: Values of the first model.
        second: Values of the second model, for the same documents in the same order.
        seed: Decides the draws.
        resamples: Number of draws.
    """
    count = len(first.values)
    # To exchange all but some documents turns the difference round: one document can stay as it is.
    every = 2 ** (count - 1)
    exact = every <= resamples
    total = every if exact else resamples
    draw = np.random.default_rng(seed)
    observed = abs(second.total - first.total) * (1 - _EQUAL)
    as_large = 0
    batch = max(1, _BATCH_VALUES // count)
    for start in range(0, total, batch):
        rows = min(batch, total - start)
        if exact:
            numbers = np.arange(start, start + rows)[:, None]  # [rows, 1]
            exchanged = (numbers >> np.arange(count)) & 1 == 1  # [rows, documents]
        else:
            exchanged = draw.integers(0, 2, (rows, count), dtype=np.int8) == 1
        as_large += int(np.sum(np.abs(_exchanged_difference(first, second, exchanged)) >= observed))
    return as_large / total if exact else (as_large + 1) / (total + 1)


def _exchanged_difference(first: DocumentValues, second: DocumentValues, exchanged: NDArray[np.bool_]) -> Values:
    """Return second minus first, [rows], where of some documents the two answers are exchanged, [rows, documents]."""
    if first.aggregate is mean and second.aggregate is mean:
        return (1 - 2 * exchanged.astype(np.float64)) @ (second.values - first.values) / len(first.values)
    one, other = (
        (np.where(exchanged, b.values, a.values), np.where(exchanged, b.weights, a.weights))
        for a, b in ((first, second), (second, first))
    )
    return second.aggregate(*other) - first.aggregate(*one)


def _resampled(first: DocumentValues, second: DocumentValues) -> tuple[tuple[Values, ...], Callable[..., Values]]:
    """Return the fewest arrays whose resampling gives the difference, and what makes it of them."""
    if first.aggregate is mean and second.aggregate is mean:
        return (second.values - first.values,), lambda difference, axis=-1: np.asarray(np.mean(difference, axis=axis))
    if np.array_equal(first.weights, second.weights):
        data = (first.values, second.values, first.weights)
        return data, lambda a, b, weights, axis=-1: second.aggregate(b, weights) - first.aggregate(a, weights)
    data4 = (first.values, first.weights, second.values, second.weights)
    return data4, lambda a, of_a, b, of_b, axis=-1: second.aggregate(b, of_b) - first.aggregate(a, of_a)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number, so that the chance of any false positive stays below the level (Holm 1979)."""
    count = len(p_values)
    corrected = [0.0] * count
    highest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda position: p_values[position])):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _seeded(seed: int) -> dict[str, np.random.Generator]:
    """Return the generator under the name that the installed scipy knows it by."""
    import inspect

    from scipy.stats import bootstrap

    name = "rng" if "rng" in inspect.signature(bootstrap).parameters else "random_state"
    return {name: np.random.default_rng(seed)}
