"""Groups of tasks, whose metrics lm-eval makes of their members' metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lowbit.results.store import StoredResult


def members_of(harness: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """Return the tasks and groups that a group sums up, by name; none for a task that is no group."""
    members = (harness.get("group_subtasks") or {}).get(task) or ()
    return tuple(sorted({str(member) for member in members} - {task}))


def tasks_inside_groups(results: Iterable[StoredResult]) -> frozenset[str]:
    """Return tasks that a measured group sums up: in means they count through their group only."""
    return frozenset(
        member
        for result in results
        for group in {metric.task for metric in result.metrics} & set(result.harness.get("groups") or {})
        for member in members_of(result.harness, group)
    )
