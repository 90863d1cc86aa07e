from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowbit.evaluation.chance import chance_levels
from lowbit.evaluation.prepare import PreparedTasks, prepare_tasks
from lowbit.recipe.evaluation import EvaluationSettings

ROWS = [
    {"question": "a", "choices": ["1", "2"], "label": 0},
    {"question": "b", "choices": ["1", "2", "3", "4"], "label": 1},
    {"question": "c", "choices": ["1", "2", "3", "4"], "label": 2},
]


@pytest.fixture
def settings(tmp_path: Path, write_rows: Callable[..., Path]) -> EvaluationSettings:
    write_rows(tmp_path / "tiny" / "choices" / "validation.jsonl", ROWS)
    return EvaluationSettings(tasks=("tiny_choices",), data_dir=str(tmp_path))


def test_it_is_the_mean_of_one_over_the_number_of_choices(
    settings: EvaluationSettings, choice_task: dict[str, Any]
) -> None:
    prepared = prepare_tasks(settings, [choice_task])
    assert chance_levels(prepared, settings) == {"tiny_choices": pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)}


def test_only_evaluated_documents_count(settings: EvaluationSettings, choice_task: dict[str, Any]) -> None:
    prepared = prepare_tasks(settings, [choice_task])
    assert chance_levels(prepared, settings.model_copy(update={"limit": 1.0}))["tiny_choices"] == 0.5
    chosen = settings.model_copy(update={"samples": {"tiny_choices": (1, 2)}})
    assert chance_levels(prepared, chosen)["tiny_choices"] == 0.25


def test_it_is_zero_where_there_is_no_choice(settings: EvaluationSettings, choice_task: dict[str, Any]) -> None:
    config = {**choice_task, "output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "{{choices[0]}}"}
    config["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    assert chance_levels(prepare_tasks(settings, [config]), settings) == {"tiny_choices": 0.0}


def test_two_right_answers_count_twice(settings: EvaluationSettings, choice_task: dict[str, Any]) -> None:
    config = {**choice_task, "doc_to_target": "{{[0, 1]}}"}
    levels = chance_levels(prepare_tasks(settings, [config]), settings)
    assert levels["tiny_choices"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


@pytest.mark.parametrize(("by_size", "expected"), [(True, (2 * 0.5 + 1 * 0.25) / 3), (False, (0.5 + 0.25) / 2)])
def test_a_group_is_weighed_as_its_accuracy_is(by_size: bool, expected: float) -> None:
    def task(name: str, choices: int, count: int) -> Any:
        return SimpleNamespace(
            task_name=name,
            OUTPUT_TYPE="multiple_choice",
            doc_to_choice=lambda _: ["x"] * choices,
            doc_to_target=lambda _: 0,
            doc_iterator=lambda **_: enumerate(range(count)),
        )

    tasks = {"a": task("a", 2, 2), "b": task("b", 4, 1)}
    group = SimpleNamespace(
        get_all_tasks=lambda: list(tasks.values()), aggregate_metric_list=[SimpleNamespace(weight_by_size=by_size)]
    )
    prepared = PreparedTasks((), tasks, {"both": group}, ())
    assert chance_levels(prepared, EvaluationSettings())["both"] == pytest.approx(expected)
