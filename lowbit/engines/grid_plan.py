"""The cells of a grid with their numbers, what is finished of them, and who watches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowbit.pipeline.bench_cells import evaluation_key
from lowbit.pipeline.bench_options import BenchOptions, model_name
from lowbit.pipeline.bench_plan import ParentGroup
from lowbit.pipeline.finished_results import FinishedResults, find_finished
from lowbit.results.rows import row_of
from lowbit.results.store import StoredResult
from lowbit.results.table import Row


class GridWatcher:
    """Is told what happens in a grid; this one looks away."""

    def planned(self, titles: Mapping[int, str], finished: int) -> None:
        """Hear which cells there are to run, by number, and how many are finished already."""

    def started(self, number: int) -> None:
        """Hear that a cell was handed to the cluster."""

    def reported(self, number: int, report: Mapping[str, Any]) -> None:
        """Hear what a worker says of its cell."""

    def ended(self, number: int, error: str | None) -> None:
        """Hear that a cell is done, or failed."""


@dataclass
class NumberedGroup:
    """A parent and its cells, as far as they have come.

    Args:
        plan: What is to be done.
        numbers: The cells' numbers in the grid; the parent's is `parent_number`.
        parent_number: The parent's number.
        parent: The parent's result.
        found: Results that were there before.
        key: Key of the parent's evaluation.
    """

    plan: ParentGroup
    numbers: range
    parent_number: int
    parent: StoredResult | None = None
    found: list[StoredResult | None] = field(default_factory=list)
    key: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether nothing of the group is left to do."""
        return self.parent is not None and None not in self.found


def number_groups(plans: Sequence[ParentGroup], options: BenchOptions) -> list[NumberedGroup]:
    """Number the cells, parents among them, and look up what is finished."""
    finished = FinishedResults(options.folder) if options.skip_finished else None
    groups, number = [], 0
    for plan in plans:
        group = NumberedGroup(plan, range(number + 1, number + 1 + len(plan.cells)), number)
        number += 1 + len(plan.cells)
        group.parent, group.found = find_finished(plan, options, finished)
        group.key = evaluation_key(plan.recipe, plan.tasks, options.device)
        groups.append(group)
    return groups


def announce(groups: Sequence[NumberedGroup], watcher: GridWatcher) -> None:
    """Tell a watcher what there is to do."""
    titles: dict[int, str] = {}
    done = 0
    for group in groups:
        name = model_name(group.plan.recipe)
        if group.parent is None:
            titles[group.parent_number] = f"parent on {name}"
        for number, cell, found in zip(group.numbers, group.plan.cells, group.found, strict=True):
            if found is None:
                titles[number] = f"{cell.recipe.method} on {name}, seed {cell.recipe.seed}"
            done += found is not None
        done += group.parent is not None
    watcher.planned(titles, done)


def stored_rows(group: NumberedGroup) -> Iterator[Row]:
    """Yield the rows of a group that is finished."""
    assert group.parent is not None
    yield row_of(group.parent)
    for found in group.found:
        if found is not None:
            yield row_of(found, group.parent)
