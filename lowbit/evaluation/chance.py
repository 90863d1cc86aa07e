"""What blind choice would score: the floor of an accuracy."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from lowbit.evaluation.prepare import PreparedTasks, documents_of
from lowbit.recipe.evaluation import EvaluationSettings


def chance_levels(prepared: PreparedTasks, settings: EvaluationSettings) -> dict[str, float]:
    """The accuracy of blind choice for every task and group, over the documents that are evaluated.

    For a multiple-choice task this is the mean of the number of right answers over the number of choices; for any
    other task, such as the prediction of a word, it is zero. A group's level is weighed as its accuracy is.

    Args:
        prepared: The tasks.
        settings: The evaluation's settings; `limit` and `samples` decide which documents count.
    """
    levels: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for name, task in prepared.tasks.items():
        chances = [_chance(task, document) for _, document in documents_of(task, name, settings)]
        levels[name] = fmean(chances) if chances else 0.0
        sizes[name] = len(chances)
    for name, group in prepared.groups.items():
        members = [task.task_name for task in group.get_all_tasks()]
        weights = [sizes[member] if _weighs_by_size(group) else 1 for member in members]
        if sum(weights):
            levels[name] = fmean((levels[member] for member in members), weights=weights)
    return levels


def _chance(task: Any, document: Any) -> float:
    """Right answers over choices for one document."""
    if task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "doc_to_choice"):
        return 0.0
    choices = task.doc_to_choice(document)
    target = task.doc_to_text(document) if getattr(task, "multiple_input", 0) else task.doc_to_target(document)
    right = len(set(target)) if isinstance(target, list) else 1
    return min(1.0, right / len(choices))


def _weighs_by_size(group: Any) -> bool:
    """Whether a group's accuracy is the mean over documents; else it is the mean over tasks."""
    metrics = group.aggregate_metric_list or []
    return all(metric.weight_by_size for metric in metrics)
