from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowbit.errors import LowbitError
from lowbit.evaluation.prepare import documents_of, prepare_tasks
from lowbit.recipe.evaluation import EvaluationSettings


@pytest.mark.parametrize("names", ["tiny_a,tiny_b", "tiny_tag", "tiny_[ab]", "tiny_tag,tiny_a", "tiny_b,tiny_a,tiny_b"])
def test_names_tags_and_patterns_give_each_task_once(own_tasks: Path, choice_mirror: Path, names: str) -> None:
    prepared = prepare_tasks(EvaluationSettings(tasks=names, data_dir=str(choice_mirror)))  # type: ignore[arg-type]
    assert sorted(prepared.tasks) == ["tiny_a", "tiny_b"]
    assert prepared.groups == {}


def test_a_group_keeps_its_tasks(own_tasks: Path, choice_mirror: Path) -> None:
    prepared = prepare_tasks(EvaluationSettings(tasks=("tiny_group",), data_dir=str(choice_mirror)))
    assert sorted(prepared.tasks) == ["tiny_a", "tiny_b"]
    assert list(prepared.groups) == ["tiny_group"]


def test_a_task_alone_and_inside_a_group_is_refused(own_tasks: Path, choice_mirror: Path) -> None:
    with pytest.raises(LowbitError, match="tiny_a"):
        prepare_tasks(EvaluationSettings(tasks=("tiny_group", "tiny_a"), data_dir=str(choice_mirror)))


def test_definitions_may_be_files_and_folders(own_tasks: Path, choice_mirror: Path) -> None:
    for name in (str(own_tasks / "tiny_a.yaml"), str(own_tasks / "tiny_*.yaml")):
        prepared = prepare_tasks(EvaluationSettings(tasks=(name,), data_dir=str(choice_mirror)))
        assert "tiny_a" in prepared.tasks
    with pytest.raises(LowbitError, match="missing"):
        prepare_tasks(EvaluationSettings(tasks=(str(own_tasks / "missing.yaml"),), data_dir=str(choice_mirror)))


def test_an_unknown_name_gives_the_nearest_ones(own_tasks: Path, choice_task: dict[str, Any]) -> None:
    with pytest.raises(LowbitError, match=r"'tiny_grup'.*tiny_group"):
        prepare_tasks(EvaluationSettings(tasks=("tiny_grup",)))
    with pytest.raises(LowbitError, match=r"'wikitext_ppl'.*wikitext2_ppl"):
        prepare_tasks(EvaluationSettings(tasks=("wikitext_ppl",)), [choice_task])


def test_no_task_at_all_is_refused() -> None:
    with pytest.raises(LowbitError, match="no task"):
        prepare_tasks(EvaluationSettings())


def test_only_those_extra_tasks_are_loaded_that_are_named(choice_mirror: Path, choice_task: dict[str, Any]) -> None:
    other = {**choice_task, "task": "other", "dataset_path": "absent/set"}
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    assert list(prepare_tasks(settings, [choice_task, other]).tasks) == ["tiny_choices"]


def test_an_extra_task_may_bring_its_own_documents(choice_task: dict[str, Any]) -> None:
    import datasets

    rows = [{"question": "one?", "choices": ["yes", "no"], "label": 1}]
    documents = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    documents["validation"] = documents["train"]
    config = {**choice_task, "custom_dataset": lambda **_: documents}
    prepared = prepare_tasks(EvaluationSettings(tasks=("tiny_choices",)), [config])
    assert prepared.tasks["tiny_choices"].eval_docs.to_list() == rows


def test_the_number_of_examples_is_set_as_the_harness_does(choice_mirror: Path, choice_task: dict[str, Any]) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    task = {**choice_task, "training_split": None}
    for own, asked, expected in ((None, None, 0), (3, None, 3), (None, 2, 2), (3, 2, 2), (0, 2, 0)):
        prepared = prepare_tasks(settings.model_copy(update={"num_fewshot": asked}), [{**task, "num_fewshot": own}])
        assert prepared.tasks["tiny_choices"].config.num_fewshot == expected


def test_samples_must_name_tasks_and_documents(choice_mirror: Path, choice_task: dict[str, Any]) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    for samples, message in (({"tiny_choice": (0,)}, "tiny_choice"), ({"tiny_choices": (0, 12)}, "12 documents")):
        with pytest.raises(LowbitError, match=message):
            prepare_tasks(settings.model_copy(update={"samples": samples}), [choice_task])


def test_limit_and_samples_decide_which_documents_are_evaluated(
    choice_mirror: Path, choice_task: dict[str, Any]
) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    task = prepare_tasks(settings, [choice_task]).tasks["tiny_choices"]
    for update, expected in (
        ({}, list(range(12))),
        ({"limit": 3}, [0, 1, 2]),
        ({"limit": 0.2}, [0, 1, 2]),
        ({"samples": {"tiny_choices": (4, 9)}}, [4, 9]),
        ({"samples": {"another": (4,)}}, list(range(12))),
    ):
        chosen = list(documents_of(task, "tiny_choices", settings.model_copy(update=update)))
        assert [index for index, _ in chosen] == expected
        assert [document["question"] for _, document in chosen] == [f"What comes after {10 + n}?" for n in expected]


def test_tasks_that_run_code_need_consent(choice_mirror: Path, choice_task: dict[str, Any]) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    with pytest.raises(LowbitError, match="confirm_run_unsafe_code"):
        prepare_tasks(settings, [{**choice_task, "unsafe_code": True}])
    allowed = settings.model_copy(update={"confirm_run_unsafe_code": True})
    assert "tiny_choices" in prepare_tasks(allowed, [{**choice_task, "unsafe_code": True}]).tasks


def test_a_task_that_cannot_be_built_names_itself(choice_mirror: Path, choice_task: dict[str, Any]) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    with pytest.raises(LowbitError, match=r"tiny_choices.*no_such_type"):
        prepare_tasks(settings, [{**choice_task, "output_type": "no_such_type"}])
