from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from results.stored_runs import store_run

from lowbit.errors import LowbitError
from lowbit.results.leaderboard import Leaderboard, LeaderboardRow, build_leaderboard, column_names
from lowbit.results.leaderboard_text import escape_latex, explanations, render, to_csv, to_latex, to_markdown
from lowbit.results.store import read_results


def board(folder: Path, *columns: str, **options: Any) -> Leaderboard:
    return build_leaderboard(read_results(folder).results, columns, **options)


def rows(found: Leaderboard) -> dict[str, LeaderboardRow]:
    return {row.label: row for group in found.groups for row in group.rows}


def values(found: Leaderboard) -> dict[str, list[object]]:
    return {label: [cell.value for cell in row.cells[1:]] for label, row in rows(found).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models; of one method three seeds."""
    store_run(tmp_path, "rtn", {"piqa.acc": 0.60, "wikitext.word_perplexity": 9.0}, minute=1, recovery=80.0)
    for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
        measured = {"piqa.acc": accuracy, "wikitext.word_perplexity": 8.0}
        store_run(tmp_path, "gptq", measured, minute=2 + seed, seed=seed, recovery=90.0)
    store_run(tmp_path, "parent", {"piqa.acc": 0.8, "wikitext.word_perplexity": 7.0}, minute=8, bits=16)
    store_run(
        tmp_path, "rtn", {"piqa.acc": 0.5, "wikitext.word_perplexity": 20.0}, minute=9, model="opt", recovery=70.0
    )
    return tmp_path


def test_models_are_groups_with_parents_first_and_the_best_above(folder: Path) -> None:
    found = board(folder, "method", "piqa")
    assert [(group.model, [row.label for row in group.rows]) for group in found.groups] == [
        ("llama", ["parent", "gptq", "rtn"]),
        ("opt", ["rtn"]),
    ]
    assert [row.is_parent for row in found.groups[0].rows] == [True, False, False]


def test_seeds_of_a_recipe_are_averaged_with_their_deviation(folder: Path) -> None:
    cell = rows(board(folder, "method", "piqa"))["gptq"].cells[1]
    assert cell.value == pytest.approx(0.72)
    assert cell.deviation == pytest.approx(0.02)
    assert cell.seeds == 3
    assert "**0.7200 ± 0.0200 (n=3)**" in to_markdown(board(folder, "method", "piqa"))


def test_one_seed_run_again_counts_once_by_its_latest_run(folder: Path) -> None:
    store_run(folder, "gptq", {"piqa.acc": 0.80}, minute=30, seed=2)
    cell = rows(board(folder, "method", "piqa"))["gptq"].cells[1]
    assert cell.seeds == 3
    assert cell.value == pytest.approx((0.70 + 0.72 + 0.80) / 3)


def test_the_latest_run_or_every_run_can_be_shown_instead(folder: Path) -> None:
    latest = rows(board(folder, "method", "seeds", "piqa", runs="latest"))["gptq"]
    assert [cell.value for cell in latest.cells] == ["gptq", "2", 0.74]
    every = [label for label in rows(board(folder, "method", "piqa", runs="all")) if label.startswith("gptq")]
    assert len(every) == 3 and all("seed=" in label and "run=" in label for label in every)


def test_rows_of_one_method_say_in_what_they_differ(folder: Path) -> None:
    store_run(folder, "gptq", {"piqa.acc": 0.65}, minute=20, options={"group_size": 32})
    found = rows(board(folder, "method", "piqa"))
    assert {"gptq (group_size=64)", "gptq (group_size=32)", "rtn"} <= set(found)


PROTOCOLS = [
    ({"n-samples": {"piqa": {"original": 100, "effective": 20}}}, "documents 20 of 100"),
    ({"n-shot": {"piqa": 5}}, "few-shot 5"),
    ({"versions": {"piqa": 2.0}}, "version 2.0"),
    ({"lm_eval_version": "0.4.20"}, "lm-eval 0.4.20"),
]


@pytest.mark.parametrize(("harness", "told"), PROTOCOLS)
def test_another_protocol_of_a_task_has_a_column_of_its_own(folder: Path, harness: dict[str, Any], told: str) -> None:
    store_run(folder, "gptq", {"piqa.acc": 0.99}, minute=20, harness=harness)
    found = board(folder, "method", "piqa")
    assert [column.variant for column in found.columns] == ["", "a", "b"]
    assert values(found)["gptq"] == pytest.approx([0.72, 0.99])
    assert values(found)["parent"] == [0.8, None]
    assert any(told in line and "[b]" in line for line in explanations(found))
    assert "piqa acc [b] ↑" in to_markdown(found)


@pytest.mark.parametrize(
    ("harness", "told"),
    [({"max_length": 128}, "context=128"), ({"config": {"model_dtype": "torch.float16"}}, "dtype=float16")],
)
def test_another_context_or_number_type_has_a_row_of_its_own(folder: Path, harness: dict[str, Any], told: str) -> None:
    store_run(folder, "rtn", {"piqa.acc": 0.99}, minute=20, harness=harness)
    found = values(board(folder, "method", "piqa"))
    (label,) = [label for label in found if told in label]
    assert label.startswith("rtn (") and found[label] == [0.99]


def test_models_that_were_run_in_different_ways_are_named_below(folder: Path) -> None:
    store_run(folder, "parent", {"piqa.acc": 0.9}, minute=20, model="qwen", harness={"max_length": 4096})
    told = explanations(board(folder, "method", "piqa"))
    assert "qwen: dtype float32, context 4096" in told
    assert "llama: dtype float32, context 256" in told


def test_few_shot_examples_of_several_seeds_are_named_below(tmp_path: Path) -> None:
    for seed in (0, 1):
        shots = {"n-shot": {"piqa": 5}, "config": {"model_dtype": "torch.float32", "fewshot_seed": seed}}
        store_run(tmp_path, "gptq", {"piqa.acc": 0.6}, minute=seed, seed=seed, harness=shots)
    found = board(tmp_path, "method", "piqa")
    assert rows(found)["gptq"].cells[1].notes == (1,)
    assert found.notes == ("few-shot examples were drawn by several seeds: 0, 1",)


def test_recovery_is_the_mean_over_tasks_and_names_them_where_some_are_missing(folder: Path) -> None:
    store_run(folder, "awq", {"piqa.acc": 0.7}, minute=20, recovery=99.0)
    found = board(folder, "method", "recovery")
    cells = {label: row.cells[1] for label, row in rows(found).items()}
    assert cells["parent"].value == 100.0
    assert cells["gptq"].value == pytest.approx(90.0) and cells["gptq"].notes == ()
    assert cells["awq"].value == pytest.approx(99.0)
    assert found.notes == ("recovery % is the mean over piqa",)
    best = found.groups[0].best[1][0]
    assert [found.groups[0].rows[number].label for number in best] == ["gptq"], "other tasks do not compete"


def test_columns_are_chosen_by_name_and_context(tmp_path: Path) -> None:
    for length in (256, 512):
        key = f"wikitext2_ppl@{length}.token_perplexity"
        store_run(tmp_path, "rtn", {key: 9.0 + length, "piqa.acc": 0.5, "piqa.acc_norm": 0.6}, minute=length % 60)
    found = board(tmp_path, "method", "bits.file", "wikitext2_ppl", "piqa.acc_norm", "file_bytes")
    titles = [column.title for column in found.columns]
    assert titles[2:4] == ["wikitext2_ppl@256 token_perplexity", "wikitext2_ppl@512 token_perplexity"]
    assert values(found)["rtn"] == [2.0, 265.0, 521.0, 0.6, 1000.0]


def test_an_unknown_column_is_refused_with_the_nearest_and_all_names(folder: Path) -> None:
    with pytest.raises(LowbitError, match=r"'piqq'.*did you mean piqa") as caught:
        board(folder, "piqq")
    names = column_names(read_results(folder).results)
    assert {"method", "bits.file", "piqa", "piqa.acc", "wikitext", "recovery", "recovery.piqa"} <= set(names)
    assert all(name in str(caught.value) for name in names)
    for name in names:
        assert board(folder, name).columns


def test_the_order_is_by_any_column_and_can_be_turned_round(folder: Path) -> None:
    def labels(sort: str) -> list[str]:
        return [row.label for row in board(folder, "method", "piqa", sort=sort).groups[0].rows]

    assert labels("wikitext") == ["parent", "gptq", "rtn"]
    assert labels("-wikitext") == ["parent", "rtn", "gptq"]
    assert labels("-piqa") == ["parent", "rtn", "gptq"]
    assert labels("method") == ["parent", "gptq", "rtn"]
    assert labels("-method") == ["parent", "rtn", "gptq"]


def test_values_that_look_equal_are_both_best(tmp_path: Path) -> None:
    store_run(tmp_path, "gptq", {"piqa.acc": 0.70001}, minute=1)
    store_run(tmp_path, "rtn", {"piqa.acc": 0.70002}, minute=2)
    assert to_markdown(board(tmp_path, "method", "piqa")).count("**0.7000**") == 2


def test_numbers_that_are_not_finite_come_last_and_are_never_best(tmp_path: Path) -> None:
    store_run(tmp_path, "billm", {"wikitext.word_perplexity": float("nan")}, minute=1)
    store_run(tmp_path, "gptq", {"wikitext.word_perplexity": 8.0}, minute=2)
    store_run(tmp_path, "rtn", {"wikitext.word_perplexity": float("inf")}, minute=3)
    found = board(tmp_path, "method", "wikitext")
    assert [row.label for row in found.groups[0].rows] == ["gptq", "rtn", "billm"]
    assert "**8.00**" in to_markdown(found)


def test_lm_evals_own_file_joins_its_model_with_the_documents_of_the_others(folder: Path) -> None:
    content = json.loads(read_results(folder).results[0].path.read_text())
    del content["lowbit"]
    content.update(model_name="org/llama", results={"piqa": {"acc,none": 0.81, "alias": "piqa"}})
    (folder / "results_2026-11-22T12-00-00.000000.json").write_text(json.dumps(content))
    found = board(folder, "method", "piqa")
    assert [column.variant for column in found.columns] == ["", ""]
    assert values(found)["org/llama"] == [0.81]
    assert [group.model for group in found.groups] == ["llama", "opt"]


def test_two_parents_of_one_name_are_told_apart(tmp_path: Path) -> None:
    store_run(tmp_path, "parent", {"piqa.acc": 0.5}, minute=1)
    path = store_run(tmp_path, "parent", {"piqa.acc": 0.6}, minute=2)
    path.write_text(path.read_text().replace("sha-of-llama", "another-sha"))
    assert {group.model for group in board(tmp_path, "method").groups} == {"llama (sha-of-l)", "llama (another-)"}


def test_csv_holds_whole_numbers_deviations_and_protocols(folder: Path) -> None:
    store_run(folder, "gptq", {"piqa.acc": 0.99}, minute=20, harness=PROTOCOLS[0][0])
    lines = list(csv.DictReader(io.StringIO(to_csv(board(folder, "method", "piqa")))))
    gptq = next(line for line in lines if line["method"] == "gptq")
    (title,) = [name for name in gptq if "all 100" in name and name.endswith(")")]
    assert float(gptq[title]) == pytest.approx(0.72)
    assert (float(gptq[f"{title}.std"]), gptq[f"{title}.n"]) == (pytest.approx(0.02), "3")
    assert any("20 of 100" in name for name in gptq)


def test_latex_is_a_whole_booktabs_table(folder: Path) -> None:
    store_run(folder, "my_method", {"piqa.acc": 0.65}, minute=20)
    text = to_latex(board(folder, "method", "piqa", "recovery"), underline_second=True)
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert all(text.count(rule) == 1 for rule in (r"\toprule", r"\bottomrule"))
    assert text.count(r"\midrule") == 2, "one above each model"
    assert r"my\_method" in text and r"piqa acc $\uparrow$" in text and r"recovery \%" in text
    assert r"\textbf{0.7200 $\pm$ 0.0200 (n=3)}" in text and r"\underline{0.6500}" in text
    assert r"\textbf{0.8000}" not in text, "a parent is not ranked"
    lines = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {2}
    assert re.search(r"[^\x00-\x7f]", text) is None


def test_latex_escapes_every_special_character() -> None:
    assert escape_latex("a_b & 5% {x} #1 $ ~ ^ \\") == (
        r"a\_b \& 5\% \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_the_terminal_table_has_every_column_and_row(folder: Path) -> None:
    table = render(board(folder))
    assert [column.header for column in table.columns][:2] == ["model", "method"]
    assert table.row_count == 4


GROUP = {"mmlu.acc": 0.8, "mmlu_a.acc": 0.9, "mmlu_b.acc": 0.7, "arc.acc": 0.2}


def store_group(folder: Path, minute: int, counts: int = 100, shots: int = 0, **options: Any) -> Path:
    """Write a result with a group as lm-eval does: it gives a group no number of documents, and not always shots."""
    members = ("mmlu_a", "mmlu_b")
    harness = {
        "groups": {"mmlu": {"acc,none": GROUP["mmlu.acc"]}},
        "group_subtasks": {"mmlu": list(members), "arc": []},
        "n-shot": dict.fromkeys(members, shots),
        "n-samples": {task: {"original": 100, "effective": counts} for task in members},
    }
    path = store_run(folder, "gptq", GROUP, minute=minute, seed=minute, harness=harness, **options)
    content = json.loads(path.read_text())
    del content["lowbit"]["data_sha256"]["mmlu"]
    path.write_text(json.dumps(content))
    return path


def test_groups_whose_members_were_asked_in_other_ways_have_columns_of_their_own(tmp_path: Path) -> None:
    for minute, asked in enumerate(({}, {}, {"counts": 10}, {"shots": 5})):
        store_group(tmp_path, minute, **asked)
    found = board(tmp_path, "method", "mmlu")
    assert [cell.seeds for cell in rows(found)["gptq"].cells[1:]] == [2, 1, 1]
    told = "\n".join(explanations(found))
    assert "documents a part" in told and "few-shot 5" in told


def test_lm_evals_own_group_shares_the_column_of_the_others(tmp_path: Path) -> None:
    path = store_group(tmp_path, 1)
    content = json.loads(path.read_text())
    content["configs"] = {"mmlu_a": {"doc_to_text": "{{question}}"}}
    path.write_text(json.dumps(content))
    del content["lowbit"]
    (tmp_path / "results_2026-11-22T12-00-00.000000.json").write_text(json.dumps({**content, "model_name": "llama"}))
    assert len(board(tmp_path, "mmlu").columns) == len(board(tmp_path, "mmlu_a").columns) == 1


def test_a_group_counts_once_and_its_members_can_be_named(tmp_path: Path) -> None:
    store_group(tmp_path, 1, recovery=80.0)
    assert values(board(tmp_path, "method", "mean_acc"))["gptq"] == [pytest.approx(0.5)]
    titles = [column.title for column in board(tmp_path).columns]
    assert "mmlu acc" in titles and "mmlu_a acc" not in titles
    assert values(board(tmp_path, "method", "mmlu_a"))["gptq"] == [0.9]


def test_token_perplexities_of_other_windows_have_columns_of_their_own(tmp_path: Path) -> None:
    for minute, data in enumerate(("a", "b")):
        path = store_run(tmp_path, "gptq", {"wikitext2_ppl@256.token_perplexity": 9.0 + minute}, minute=minute)
        content = json.loads(path.read_text())
        content["lowbit"]["data_sha256"] = {"wikitext2_ppl": data * 64}
        path.write_text(json.dumps(content))
    assert values(board(tmp_path, "method", "wikitext2_ppl"))["gptq"] == [9.0, 10.0]


@pytest.mark.parametrize(
    ("key", "one", "other", "columns"),
    [
        ("doc_to_text", "{{goal}}", "{{goal}} ???", 2),
        ("description", "", "You are", 2),
        ("filter_list", [{"name": "strict"}], [{"name": "flexible"}], 2),
        ("doc_to_choice", "<function choices at 0x7f0a1b2c3d4e>", "<function choices at 0x7fffffffffff>", 1),
        ("dataset_kwargs", {"data_files": "/a"}, {"data_files": "/b"}, 1),
    ],
)
def test_another_prompt_has_a_column_of_its_own(tmp_path: Path, key: str, one: Any, other: Any, columns: int) -> None:
    for seed, value in enumerate((one, other)):
        config = {"configs": {"piqa": {"doc_to_target": "label", key: value}}}
        store_run(tmp_path, "gptq", {"piqa.acc": 0.5}, minute=seed, seed=seed, harness=config)
    found = board(tmp_path, "method", "piqa")
    assert len(found.columns) == 1 + columns
    assert any("prompt" in line for line in explanations(found)) == (columns == 2)


@pytest.mark.parametrize("lost", [float("inf"), float("nan")])
def test_recovery_of_seeds_that_diverged_is_said_and_not_ranked(tmp_path: Path, lost: float) -> None:
    store_run(tmp_path, "rtn", {"wikitext.word_perplexity": 9.0}, minute=1, recovery=80.0)
    store_run(tmp_path, "gptq", {"wikitext.word_perplexity": 8.0}, minute=2, seed=0, recovery=90.0)
    store_run(tmp_path, "gptq", {"wikitext.word_perplexity": lost}, minute=3, seed=1)
    found = board(tmp_path, "method", "recovery.wikitext", "recovery", "wikitext")
    assert found.notes[0] == "recovery of 1 of 2 seeds: the others are not finite"
    for position in (1, 2):
        assert rows(found)["gptq"].cells[position].notes == (1,)
        (winner,) = found.groups[0].best[position][0]
        assert found.groups[0].rows[winner].label == "rtn"


def test_a_seed_that_is_not_a_number_leaves_no_median(tmp_path: Path) -> None:
    for seed, value in enumerate((3.0, float("nan"), float("inf"))):
        store_run(tmp_path, "gptq", {"wikitext.word_perplexity": value}, minute=seed, seed=seed)
    value = rows(board(tmp_path, "method", "wikitext"))["gptq"].cells[1].value
    assert isinstance(value, float) and math.isnan(value)


def test_names_cannot_break_a_table_or_be_a_formula(tmp_path: Path) -> None:
    store_run(tmp_path, "=a\\|b\nc", {"piqa.acc": 0.5})
    found = board(tmp_path, "method", "seeds", "piqa")
    assert r"| =a\\\|b c |" in to_markdown(found)
    (line,) = csv.DictReader(io.StringIO(to_csv(found)))
    assert line["method"] == "'=a\\|b\nc"


def test_every_device_of_a_mean_is_named(tmp_path: Path) -> None:
    for seed, device in enumerate(("cpu", "cuda", "cpu")):
        path = store_run(tmp_path, "gptq", {"piqa.acc": 0.5}, minute=seed, seed=seed)
        content = json.loads(path.read_text())
        content["lowbit"]["device"] = device
        path.write_text(json.dumps(content))
    assert values(board(tmp_path, "method", "device"))["gptq"] == ["cpu, cuda"]
