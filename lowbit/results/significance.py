"""Tests for paired samples: McNemar's exact test, the paired bootstrap, and Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.results.samples import DocumentValues, Values, mean

RESAMPLES = 10_000
_BATCH_VALUES = 2_000_000
"""Resampled values that are in memory at a time."""


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
class BootstrapDifference:
    """A metric's difference over documents drawn anew.

    Args:
        difference: Second minus first, of all documents.
        lower: Lower end of the interval.
        upper: Upper end of the interval.
        p_value: Two-sided: twice the share of draws on the other side of no difference, at most 1.
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


def bootstrap_difference(
    first: DocumentValues, second: DocumentValues, seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> BootstrapDifference:
    """Draw documents with replacement, the same for both models, and look at the difference of the metric.

    Percentile interval (Efron and Tibshirani 1993, chapter 13). The p value is read off the same draws, so that it is
    below 0.05 about where the 95 % interval leaves out zero.

    Args:
        first: Values of the first model.
        second: Values of the second model, for the same documents in the same order.
        seed: Decides the draws.
        resamples: Number of draws.
        confidence: Of the interval.
    """
    from scipy.stats import bootstrap

    data, difference = _resampled(first, second)
    observed = float(difference(*data))
    if len(first.values) < 2:
        return BootstrapDifference(observed, observed, observed, 1.0)
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
    values = drawn.bootstrap_distribution
    # One more on each side: no number of draws shows a probability of zero.
    tail = min(np.sum(values <= 0), np.sum(values >= 0)) + 1
    p_value = min(1.0, 2 * float(tail) / (resamples + 1))
    return BootstrapDifference(
        observed, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high), p_value
    )


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
