from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from lowbit.recipe.evaluation import EvaluationSettings


def test_defaults_are_those_of_the_harness_command_line() -> None:
    settings = EvaluationSettings()
    assert settings.seed == (0, 1234, 1234, 1234)
    assert settings.log_samples is False
    assert settings.bootstrap_iters == 100_000
    assert settings.multiturn is False


@pytest.mark.parametrize("value", ["wikitext,piqa", "wikitext piqa", ["wikitext", "piqa"], ["wikitext,piqa"]])
def test_task_names_may_stand_between_commas_or_spaces(value: object) -> None:
    assert EvaluationSettings.model_validate({"tasks": value}).tasks == ("wikitext", "piqa")


@pytest.mark.parametrize(("value", "expected"), [("8", 8), (8, 8), ("auto", "auto"), ("auto:4", "auto:4")])
def test_batch_size_takes_what_the_harness_takes(value: object, expected: object) -> None:
    assert EvaluationSettings.model_validate({"batch_size": value}).batch_size == expected


@pytest.mark.parametrize("value", [0, -1, "many", "auto:0", "auto:x"])
def test_other_batch_sizes_are_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        EvaluationSettings.model_validate({"batch_size": value})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, (7, 7, 7, 7)),
        ("7", (7, 7, 7, 7)),
        ("1,2,3,4", (1, 2, 3, 4)),
        ([1, 2, 3], (1, 2, 3, 1234)),
        ("0,None,8,52", (0, None, 8, 52)),
        (None, (None, None, None, None)),
    ],
)
def test_one_seed_counts_for_all_and_a_missing_one_is_filled_in(value: object, expected: object) -> None:
    assert EvaluationSettings.model_validate({"seed": value}).seed == expected


def test_samples_are_read_from_text_or_a_file_and_sorted(tmp_path: Path) -> None:
    file = tmp_path / "samples.json"
    file.write_text(json.dumps({"piqa": [3, 1, 3]}), encoding="utf-8")
    for value in ('{"piqa": [3, 1, 3]}', str(file), {"piqa": [3, 1, 3]}):
        assert EvaluationSettings.model_validate({"samples": value}).samples == {"piqa": (1, 3)}


@pytest.mark.parametrize("value", [{"piqa": []}, {"piqa": [-1]}, "no such file"])
def test_samples_that_would_be_ignored_are_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        EvaluationSettings.model_validate({"samples": value})


def test_generation_settings_are_read_from_text() -> None:
    settings = EvaluationSettings.model_validate({"gen_kwargs": "temperature=0.8,until=['a,b','c'],do_sample=true"})
    assert settings.gen_kwargs == {"temperature": 0.8, "until": ["a,b", "c"], "do_sample": True}


def test_limit_and_samples_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        EvaluationSettings(limit=3, samples={"piqa": (1,)})


@pytest.mark.parametrize("limit", [0, -2])
def test_a_limit_that_leaves_nothing_is_refused(limit: int) -> None:
    with pytest.raises(ValidationError):
        EvaluationSettings(limit=limit)


def test_turns_of_a_chat_need_a_chat_template() -> None:
    with pytest.raises(ValidationError, match="apply_chat_template"):
        EvaluationSettings(fewshot_as_multiturn=True)
    assert EvaluationSettings(apply_chat_template=True).multiturn is True


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="taskz"):
        EvaluationSettings.model_validate({"taskz": ["piqa"]})
