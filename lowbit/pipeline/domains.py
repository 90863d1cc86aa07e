"""Says when a method was calibrated on text of the kind that it is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.evaluation.prepare import PreparedTasks


def in_domain_tasks(calibration: Mapping[str, Any] | None, tasks: PreparedTasks) -> list[str]:
    """Return the tasks whose data set belongs to the family that the calibration text came from.

    Args:
        calibration: The calibration's record; `None` without calibration.
        tasks: The evaluated tasks.
    """
    domain = (calibration or {}).get("domain")
    if not domain:
        return []
    origins = {name: f"{name} {task.get_config('dataset_path')}" for name, task in tasks.tasks.items()}
    origins.update({task.name: f"{task.name} {task.corpus.path}" for task in tasks.perplexities})
    return sorted(name for name, origin in origins.items() if domain.lower() in origin.lower())
