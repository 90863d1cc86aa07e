"""Scores of a model folder by lm-evaluation-harness, and of its answers without the questions."""

from pathlib import Path
from typing import Any

from lowbit.embedded import task_configs


def _answer_only(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "task": "smallworld_answer_only", "doc_to_text": "Answer:"}


def score(model_path: Path, task_folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """lm-eval's results of both embedded tasks, and of the choice task with its goals left out.

    Args:
        model_path: a model folder in Hugging Face form, evaluated in float32.
        task_folder: jsonl files other than the embedded ones, such as the validation split's.

    Returns:
        For each task, lm-eval's metrics, and `accuracy_by_kind` for the choice task.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    text, choice = task_configs(task_folder)
    model = HFLM(pretrained=str(model_path), dtype="float32", device="cpu", batch_size=32)
    found = simple_evaluate(
        model=model,
        tasks=[text, choice, _answer_only(choice)],
        task_manager=TaskManager(include_defaults=False),
        log_samples=True,
    )
    results: dict[str, dict[str, Any]] = dict(found["results"])
    kinds: dict[str, list[float]] = {}
    for sample in found["samples"]["smallworld_choice"]:
        kinds.setdefault(sample["doc"]["kind"], []).append(sample["acc"])
    results["smallworld_choice"]["accuracy_by_kind"] = {
        kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(kinds.items())
    }
    return results
