from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from results.stored_runs import store_run, word_perplexity

from lowbit.errors import LowbitError
from lowbit.results.comparison import ComparedRuns, compare_runs
from lowbit.results.comparison_text import explanations, to_csv, to_json, to_markdown
from lowbit.results.store import StoredResult, read_results

RIGHT = [1.0] * 12 + [0.0] * 8
FEWER = [1.0] * 3 + [0.0] * 17


def store(folder: Path, method: str, scores: Sequence[float], minute: int, **options: Any) -> None:
    value = sum(scores) / len(scores)
    store_run(folder, method, {"piqa.acc": value}, scores={"piqa.acc": scores}, minute=minute, **options)


def runs(folder: Path) -> tuple[StoredResult, ...]:
    return read_results(folder).results


def compare(folder: Path, **options: Any) -> ComparedRuns:
    return compare_runs(runs(folder), runs(folder), resamples=500, **options)


def test_accuracies_are_compared_by_the_documents_on_which_they_disagree(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store(tmp_path, "rtn", FEWER, 2)
    (row,) = compare(tmp_path).rows
    assert (row.task, row.metric, row.documents, row.test) == ("piqa", "acc", 20, "McNemar exact")
    assert row.mcnemar is not None and (row.mcnemar.only_first, row.mcnemar.only_second) == (9, 0)
    assert row.p_value == row.p_corrected == pytest.approx(2 / 2**9)
    assert row.difference.difference == pytest.approx(-0.45)
    assert row.difference.lower < -0.45 < row.difference.upper < 0
    assert row.verdict == "worse"


def test_perplexities_are_compared_as_lm_eval_aggregates_them(tmp_path: Path) -> None:
    one = [[-10.0 - n % 3, 5 + n] for n in range(30)]
    other = [[pair[0] - 1.0, pair[1]] for pair in one]
    for minute, (method, logged) in enumerate((("gptq", one), ("rtn", other))):
        values = {"wikitext.word_perplexity": word_perplexity(logged)}
        store_run(tmp_path, method, values, scores={"wikitext.word_perplexity": logged}, minute=minute)
    (row,) = compare(tmp_path).rows
    assert row.values == pytest.approx((word_perplexity(one), word_perplexity(other)))
    assert row.test == "permutation" and row.verdict == "worse" and not row.higher_is_better


def test_token_perplexities_are_compared_by_their_windows(tmp_path: Path) -> None:
    for minute, (method, losses) in enumerate((("gptq", [2.0, 2.5, 3.0, 1.5]), ("rtn", [2.2, 2.6, 3.1, 1.9]))):
        key = "wikitext2_ppl@256.token_perplexity"
        values = {key: math.exp(sum(losses) / 4)}
        store_run(tmp_path, method, values, scores={key: [math.exp(loss) for loss in losses]}, minute=minute)
    (row,) = compare(tmp_path).rows
    assert row.task == "wikitext2_ppl@256"
    assert row.difference.difference == pytest.approx(math.exp(2.45) - math.exp(2.25))


def test_several_runs_are_compared_with_the_first_and_corrected(tmp_path: Path) -> None:
    for minute, scores in enumerate((RIGHT, FEWER, [1.0] * 5 + [0.0] * 15)):
        store(tmp_path, f"m{minute}", scores, minute)
    compared = compare(tmp_path)
    assert [row.second.method for row in compared.rows] == ["m1", "m2"]
    assert [row.p_value for row in compared.rows] == pytest.approx([2 / 2**9, 2 / 2**7])
    assert [row.p_corrected for row in compared.rows] == pytest.approx([4 / 2**9, 2 / 2**7])
    assert "p Holm" in to_markdown(compared)


def test_runs_without_samples_are_refused_with_what_to_do(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store_run(tmp_path, "rtn", {"piqa.acc": 0.5}, minute=2)
    with pytest.raises(LowbitError, match="--log_samples"):
        compare(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompts": "q"}, "their prompts"),
        ({"harness": {"n-shot": {"piqa": 5}}}, "few-shot 0.*few-shot 5"),
        ({"harness": {"versions": {"piqa": 2.0}}}, "version 1.0.*version 2.0"),
        ({"harness": {"system_instruction_sha": "abc"}}, "without.*system instruction abc"),
    ],
)
def test_what_was_asked_otherwise_is_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store(tmp_path, "rtn", RIGHT, 2, **options)
    with pytest.raises(LowbitError, match=reason):
        compare(tmp_path)


def test_another_number_of_documents_is_refused(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store(tmp_path, "rtn", RIGHT[:10], 2)
    with pytest.raises(LowbitError, match=r"20 documents and \w+ 10.*--limit"):
        compare(tmp_path)


def test_runs_without_a_common_task_are_refused_with_their_tasks(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store_run(tmp_path, "rtn", {"boolq.acc": 1.0}, scores={"boolq.acc": [1.0]}, minute=2)
    with pytest.raises(LowbitError, match=r"piqa.*boolq"):
        compare(tmp_path)
    with pytest.raises(LowbitError, match="the task arc_easy"):
        compare(tmp_path, tasks=["arc_easy"])
    with pytest.raises(LowbitError, match="two or more"):
        compare_runs(runs(tmp_path)[:1])


def test_a_metric_that_its_samples_do_not_give_is_left_out_and_said(tmp_path: Path) -> None:
    for minute, method in enumerate(("gptq", "rtn")):
        values = {"squad.f1": 0.9, "squad.bleu": 12.0, "squad.acc": 0.5}
        scores = {"squad.f1": [0.1, 0.2], "squad.bleu": [["a", "b"], ["c", "d"]], "squad.acc": [1.0, 0.0]}
        store_run(tmp_path, method, values, scores=scores, minute=minute)
    compared = compare(tmp_path)
    assert [row.metric for row in compared.rows] == ["acc"]
    assert any("f1 is not compared: the samples give 0.15" in note for note in compared.notes)
    assert any("bleu is not compared: its samples hold no number" in note for note in compared.notes)


def test_a_damaged_samples_file_is_one_clear_error(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store(tmp_path, "rtn", RIGHT, 2)
    runs(tmp_path)[1].samples["piqa"].write_text('{"doc_id": 0, "acc"')
    with pytest.raises(LowbitError, match="cannot be read"):
        compare(tmp_path)


def test_seeds_that_lie_further_apart_than_the_compared_runs_are_a_warning(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    for seed, wrong in enumerate((8, 4, 12)):
        store(tmp_path, "rtn", [1.0] * (19 - wrong) + [0.0] * (wrong + 1), 2 + seed, seed=seed)
    found = runs(tmp_path)
    compared = compare_runs(found[:2], found, resamples=200)
    (warning,) = compared.warnings
    assert "3 seeds of rtn" in warning and "0.4 apart" in warning and "0.05 between" in warning
    assert compare_runs(found[:2], found[:2], resamples=200).warnings == ()


def test_another_recipe_is_not_another_seed(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store(tmp_path, "rtn", [*RIGHT[1:], 0.0], 2)
    store(tmp_path, "rtn", [0.0] * 20, 3, seed=1, options={"group_size": 32})
    found = runs(tmp_path)
    assert compare_runs(found[:2], found, resamples=200).warnings == ()


def test_every_form_has_the_same_numbers(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store(tmp_path, "rtn", FEWER, 2)
    compared = compare(tmp_path)
    content = json.loads(to_json(compared))
    (line,) = csv.DictReader(io.StringIO(to_csv(compared)))
    assert content["comparisons"][0]["difference"] == float(line["difference"]) == pytest.approx(-0.45)
    assert [run["method"] for run in content["runs"]] == ["gptq", "rtn"]
    assert "| -0.4500 |" in to_markdown(compared)
    assert any("another seed" in text for text in explanations(compared))


def test_an_interval_of_few_documents_is_called_rough(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT[:19], 1)
    store(tmp_path, "rtn", FEWER[:19], 2)
    assert any("piqa has 19 documents: the interval is rough" in note for note in compare(tmp_path).notes)


def test_another_reading_of_the_answers_is_refused(tmp_path: Path) -> None:
    for minute, filters in enumerate(("strict", "flexible")):
        store(tmp_path, f"m{minute}", RIGHT, minute, harness={"configs": {"piqa": {"filter_list": [filters]}}})
    with pytest.raises(LowbitError, match=r"prompt \w{8}.*prompt \w{8}"):
        compare(tmp_path)


def test_names_cannot_break_a_markdown_table_or_be_a_formula(tmp_path: Path) -> None:
    store(tmp_path, "gptq", RIGHT, 1)
    store(tmp_path, "=a\\|b\nc", FEWER, 2, model="x")
    (second,) = (run for run in runs(tmp_path) if run.model == "x")
    (first,) = (run for run in runs(tmp_path) if run.model != "x")
    compared = compare_runs((first, second), resamples=200)
    assert r"=a\\\|b c |" in to_markdown(compared)
    (line,) = csv.DictReader(io.StringIO(to_csv(compared)))
    assert line["method"] == "'=a\\|b\nc" and float(line["difference"]) < 0
