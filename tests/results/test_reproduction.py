"""The verdicts of a reproduction: what passes, what is near, what fails, on which side."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lowbit.results.metrics import Metric
from lowbit.results.reproduction import (
    Comparison,
    Verdict,
    counts,
    find_metric,
    in_published_unit,
    protocol_differs,
    render_reproduction,
)


def compare(ours: float | None, published: float = 20.0, tolerance: float = 0.05, higher: bool = False) -> Comparison:
    return Comparison("row", "wikitext2_ppl@2048 token_perplexity", published, ours, tolerance, higher, "Table 1")


@pytest.mark.parametrize(
    ("ours", "verdict", "better"),
    [
        (20.0, Verdict.PASS, False),
        (21.0, Verdict.PASS, False),
        (19.0, Verdict.PASS, False),
        (21.1, Verdict.NEAR, False),
        (18.9, Verdict.NEAR, True),
        (22.0, Verdict.NEAR, False),
        (22.1, Verdict.FAIL, False),
        (17.9, Verdict.FAIL, True),
        (math.inf, Verdict.FAIL, False),
        (math.nan, Verdict.FAIL, False),
        (None, Verdict.FAIL, False),
    ],
)
def test_a_perplexity_passes_within_its_tolerance_on_both_sides(
    ours: float | None, verdict: Verdict, better: bool
) -> None:
    found = compare(ours)
    assert (found.verdict, found.better) == (verdict, better)


def test_a_higher_accuracy_is_better_and_still_fails() -> None:
    found = compare(70.0, 60.0, higher=True)
    assert (found.verdict, found.better) == (Verdict.FAIL, True)


@given(st.floats(0.1, 1e6), st.floats(0.001, 1), st.sampled_from([-1, 1]))
def test_a_difference_that_equals_its_tolerance_passes(published: float, tolerance: float, side: int) -> None:
    assert compare(published * (1 + side * tolerance), published, tolerance).verdict == Verdict.PASS
    assert compare(published * (1 + side * 2 * tolerance), published, tolerance).verdict == Verdict.NEAR


def test_what_was_not_run_is_neither_passed_nor_failed() -> None:
    skipped = Comparison("row", "piqa acc", 60.0, None, 0.05, reason="lowbit has no such method", skipped=True)
    assert counts([skipped, compare(20.0), compare(None)]) == {"PASS": 1, "NEAR": 0, "FAIL": 1, "SKIPPED": 1}


def test_a_parent_off_by_more_than_its_tolerance_means_another_protocol() -> None:
    same, other = compare(20.1, tolerance=0.01), compare(20.3, tolerance=0.01)
    assert protocol_differs([same, other]) == [other]


def test_accuracies_are_in_percent_and_perplexities_as_they_are() -> None:
    assert in_published_unit(Metric("piqa", "acc_norm", "none", 0.61, None, True)) == 61
    assert in_published_unit(Metric("wikitext2_ppl@2048", "token_perplexity", "none", 5.47, None, False)) == 5.47


def test_a_metric_is_found_by_task_name_and_filter() -> None:
    measured = [
        Metric("gsm8k", "exact_match", "strict-match", 0.1, None, True),
        Metric("gsm8k", "exact_match", "flexible-extract", 0.2, None, True),
        Metric("piqa", "acc", "none", 0.6, None, True),
        Metric("wikitext2_ppl@512", "token_perplexity", "none", 63.1, None, False),
    ]
    assert find_metric(measured, "wikitext2_ppl", "token_perplexity") is measured[3]
    assert find_metric(measured, "wikitext2_ppl@512", "token_perplexity") is measured[3]
    assert find_metric(measured, "wikitext2_ppl@2048", "token_perplexity") is None
    assert find_metric(measured, "gsm8k", "exact_match,flexible-extract") is measured[1]
    assert find_metric(measured, "piqa", "acc_norm") is None


def test_the_table_has_the_parent_first_and_every_number() -> None:
    parent = Comparison("unquantized", "wikitext2_ppl@2048 token_perplexity", 5.47, 5.48, 0.01)
    skipped = Comparison("GPTQ", "piqa acc", 60.0, None, 0.05, True, "Table 2", "no such method", skipped=True)
    console = Console(width=180, record=True)
    console.print(render_reproduction([parent], [compare(18.0), skipped]))
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    rows = [line for line in lines if "acc" in line or "perplexity" in line]
    assert rows == [
        "unquantized wikitext2_ppl@2048 token_perplexity 5.47 5.48 +0.18 1 PASS",
        "row wikitext2_ppl@2048 token_perplexity 20.00 18.00 -10.00 5 NEAR (better) Table 1",
        "GPTQ piqa acc 60.00 - - 5 SKIPPED Table 2: no such method",
    ]
