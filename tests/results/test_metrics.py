from __future__ import annotations

import math

import pytest

from lowbit.results.metrics import Metric, primary_metrics, read_metrics, recovery, recovery_table

PARENT = {
    "results": {
        "piqa": {"alias": "piqa", "acc,none": 0.8, "acc_stderr,none": 0.01, "acc_norm,none": 0.78},
        "wikitext": {"word_perplexity,none": 10.0, "word_perplexity_stderr,none": "N/A", "bits_per_byte,none": 0.5},
    },
    "higher_is_better": {"piqa": {"acc": True, "acc_norm": True}, "wikitext": {"word_perplexity": False}},
}
QUANTIZED = {
    "results": {
        "piqa": {"alias": "piqa", "acc,none": 0.65, "acc_norm,none": 0.6},
        "wikitext": {"word_perplexity,none": 20.0, "bits_per_byte,none": 0.7},
    },
    "higher_is_better": PARENT["higher_is_better"],
}


def metric(value: float, higher: bool = True, name: str = "acc") -> Metric:
    return Metric("task", name, "none", value, None, higher)


def test_metrics_are_read_without_aliases_and_standard_errors() -> None:
    found = {(m.task, m.key): m for m in read_metrics(PARENT)}
    assert set(found) == {
        ("piqa", "acc,none"),
        ("piqa", "acc_norm,none"),
        ("wikitext", "word_perplexity,none"),
        ("wikitext", "bits_per_byte,none"),
    }
    assert found["piqa", "acc,none"].stderr == 0.01
    assert found["wikitext", "word_perplexity,none"].stderr is None


def test_the_table_shows_accuracy_or_perplexity_first() -> None:
    chosen = primary_metrics(PARENT)
    assert {task: m.name for task, m in chosen.items()} == {"piqa": "acc", "wikitext": "word_perplexity"}


def test_recovery_of_a_score_is_quantized_over_parent_with_the_value_above_chance_beside_it() -> None:
    found = recovery(metric(0.8), metric(0.65), chance=0.5)
    assert found.percent == pytest.approx(81.25)
    assert found.above_chance == pytest.approx(50.0)


def test_recovery_of_a_perplexity_is_parent_over_quantized() -> None:
    found = recovery(metric(10, False, "word_perplexity"), metric(20, False, "word_perplexity"), chance=0.0)
    assert found.percent == pytest.approx(50.0)
    assert found.above_chance is None


def test_a_parent_at_chance_has_no_recovery_above_chance() -> None:
    assert recovery(metric(0.5), metric(0.4), chance=0.5).above_chance is None


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_recovery_of_a_broken_model_is_absent_rather_than_wrong(value: float) -> None:
    assert recovery(metric(10, False), metric(value, False), chance=0.0).percent is None


def test_the_recovery_table_holds_every_metric_that_both_results_have() -> None:
    table = recovery_table(PARENT, QUANTIZED, {"piqa": 0.5})
    assert table["piqa"]["acc,none"] == {
        "parent": 0.8,
        "quantized": 0.65,
        "recovery_percent": pytest.approx(81.25),
        "recovery_above_chance_percent": pytest.approx(50.0),
    }
    assert table["wikitext"]["word_perplexity,none"]["recovery_percent"] == pytest.approx(50.0)
