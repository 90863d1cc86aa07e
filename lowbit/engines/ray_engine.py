"""Runs the cells of a bench as tasks of a Ray cluster."""

from __future__ import annotations

import importlib.metadata
import logging
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lowbit import preemption
from lowbit.engines.cell import CellAnswer, CellTask, run_cell
from lowbit.engines.grid_plan import GridWatcher, NumberedGroup, announce, number_groups, stored_rows
from lowbit.engines.ray_cluster import ClusterSettings, connected, fitting_nodes, largest_node_cpus
from lowbit.errors import LowbitError
from lowbit.pipeline.bench import failed_cell, failed_parent
from lowbit.pipeline.bench_options import BenchOptions
from lowbit.pipeline.bench_plan import plan_bench
from lowbit.pipeline.composition_check import require_composition
from lowbit.recipe import Recipe
from lowbit.registry import registry
from lowbit.results.rows import row_of
from lowbit.results.store import StoredResult, read_result
from lowbit.results.table import Row

POLL_SECONDS = 0.5
LOST_WORKERS = 10
"""How often a cell is begun again after its worker was lost; an error of the cell itself is never tried again."""
SECONDS_TO_STOP = 4.0
SECONDS_TO_APPEAR = 15.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayOptions:
    """How a grid runs on a cluster.

    Args:
        cluster: Which cluster.
        plugins: What was given to `--plugin`; workers load the same.
        watcher: Is told what happens.
    """

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    plugins: Sequence[str] = ()
    watcher: GridWatcher = field(default_factory=GridWatcher)


def ray_bench(recipes: Sequence[Recipe], options: BenchOptions, how: RayOptions) -> Iterator[Row]:
    """Run a bench as `lowbit.pipeline.bench.bench` does, each cell as a task of a Ray cluster.

    Everything that can be known to fail is checked here, before a task is sent. A parent is evaluated once, and its
    methods after it. A cell whose worker is lost is begun again elsewhere and continues from its journal; results,
    checkpoints and journals lie in the results directory, which all nodes must share.

    Args:
        recipes: Any number of methods and models.
        options: How to run; `events` and `announce` are for this process and stay with it.
        how: Where to run.

    Raises:
        LowbitError: A model, a task, a data set or a recipe does not hold up, or there is no such cluster.
    """
    for recipe in recipes:
        require_composition(recipe, registry())
    groups = number_groups(plan_bench(recipes, options, elsewhere=True), options)
    announce(groups, how.watcher)
    if all(group.is_finished for group in groups):
        yield from (row for group in groups for row in stored_rows(group))
        return
    with connected(how.cluster) as ray:
        yield from _Grid(ray, groups, options, how).run()


class _Grid:
    """The tasks of a grid on a cluster that this process is connected to."""

    def __init__(self, ray: Any, groups: Sequence[NumberedGroup], options: BenchOptions, how: RayOptions) -> None:
        self._ray = ray
        self._groups = groups
        self._options = options
        self._watcher = how.watcher
        self._plugins = tuple(how.plugins)
        # With its node what was reported is lost, too, which is no matter.
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(_Mailbox).remote()
        self._pending: dict[Any, tuple[NumberedGroup, int]] = {}
        self._told: set[str] = set()

    def run(self) -> Iterator[Row]:
        """Send the cells and yield rows in the order of the grid, each once it and those before it are known."""
        rows: dict[int, Row | None] = {}
        order = [number for group in self._groups for number in (group.parent_number, *group.numbers)]
        try:
            for group in self._groups:
                rows.update(self._begin(group))
            while order:
                while order and order[0] in rows:
                    row = rows.pop(order.pop(0))
                    if row is not None:
                        yield row
                if order:
                    assert self._pending, "cells without rows are at work"
                    rows.update(self._wait())
        except BaseException:
            self._stop()
            raise

    def _begin(self, group: NumberedGroup) -> dict[int, Row | None]:
        """Send a group's parent, or its cells where the parent is known."""
        if group.parent is None:
            self._send(group, group.parent_number, "parent", group.plan.recipe, "")
            return {}
        return {group.parent_number: row_of(group.parent), **self._send_cells(group)}

    def _send_cells(self, group: NumberedGroup) -> dict[int, Row | None]:
        """Send the cells of an evaluated parent, and return the rows of those that are finished."""
        assert group.parent is not None
        rows: dict[int, Row | None] = {}
        for number, cell, found in zip(group.numbers, group.plan.cells, group.found, strict=True):
            if found is None:
                self._send(group, number, "quantized", cell.recipe, cell.checkpoint.name)
            else:
                rows[number] = row_of(found, group.parent)
        return rows

    def _send(
        self,
        group: NumberedGroup,
        number: int,
        role: Literal["parent", "quantized"],
        recipe: Recipe,
        checkpoint: str,
    ) -> None:
        wanted = recipe.resources
        threads = wanted.num_cpus or torch.get_num_threads()
        resources: dict[str, Any] = {
            "num_cpus": wanted.num_cpus or min(threads, largest_node_cpus(self._ray) or threads),
            "num_gpus": wanted.num_gpus,
            "memory": wanted.memory,
        }
        self._require_room(resources)
        task = CellTask(
            number=number,
            role=role,
            recipe=recipe.to_dict(),
            sha256=recipe.sha256(),
            output_path=str(self._options.output_path),
            device=self._options.device,
            run=self._options.run,
            threads=threads,
            working_directory=str(Path.cwd()),
            plugins=self._plugins,
            version=importlib.metadata.version("lowbit"),
            extra_tasks=tuple(self._options.extra_tasks),
            refresh_parent=self._options.refresh_parent,
            speed=self._options.speed,
            skip_finished=self._options.skip_finished,
            checkpoint=checkpoint,
            key=group.key,
            most_attempts=LOST_WORKERS + 1,
        )
        remote = self._ray.remote(_work).options(
            **resources, max_retries=LOST_WORKERS, retry_exceptions=False, name=f"lowbit {recipe.method}"
        )
        self._pending[remote.remote(task, self._mailbox)] = (group, number)
        self._watcher.started(number)

    def _require_room(self, resources: Mapping[str, Any]) -> None:
        """Say once when no node is large enough: one may still come, where the cluster grows by itself."""
        wanted = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"], "memory": resources["memory"] or 0}
        text = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items() if amount)
        if text not in self._told and not fitting_nodes(self._ray, wanted):
            logger.warning(
                "no node of the cluster has %s now; cells wait for one (--set resources.num_cpus=N asks for less)", text
            )
            self._told.add(text)

    def _wait(self) -> dict[int, Row | None]:
        """Pass on what workers report, and return the rows of the cells that ended."""
        ended, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=POLL_SECONDS)
        self._pass_on()
        rows: dict[int, Row | None] = {}
        for reference in ended:
            group, number = self._pending.pop(reference)
            answer = self._answer(reference, number)
            self._watcher.ended(number, answer.error)
            rows.update(self._rows_of(group, number, answer))
        return rows

    def _answer(self, reference: Any, number: int) -> CellAnswer:
        """Return a task's answer; what it did not expect, and a worker that was lost too often, is an error."""
        try:
            answer: CellAnswer = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return CellAnswer(number, None, _reason(error.cause or error))
        except self._ray.exceptions.RayError as error:
            return CellAnswer(number, None, f"the cluster gave it up: {_reason(error)}")
        return answer

    def _rows_of(self, group: NumberedGroup, number: int, answer: CellAnswer) -> dict[int, Row | None]:
        """Return the rows that an answer makes known; a parent's answer lets its methods begin, or ends them."""
        stored, answer = self._stored(answer)
        if number == group.parent_number:
            if stored is None:
                left_out: dict[int, Row | None] = dict.fromkeys(group.numbers)
                for cell, found in zip(group.numbers, group.found, strict=True):
                    if found is None:
                        self._watcher.ended(cell, "its parent failed")
                return {number: failed_parent(group.plan.recipe, answer.error), **left_out}
            group.parent = stored
            return {number: row_of(stored), **self._send_cells(group)}
        assert group.parent is not None
        recipe = group.plan.cells[number - group.numbers.start].recipe
        if stored is None:
            return {number: failed_cell(recipe, group.parent, answer.error)}
        return {number: row_of(stored, group.parent)}

    def _stored(self, answer: CellAnswer) -> tuple[StoredResult | None, CellAnswer]:
        """Read what a worker wrote; network storage may show it a little later."""
        if answer.result is None:
            return None, answer
        until = time.monotonic() + SECONDS_TO_APPEAR
        while True:
            try:
                return read_result(Path(answer.result)), answer
            except LowbitError as error:
                if time.monotonic() > until:
                    reason = f"{answer.result}, which its worker wrote, {error}; nodes must share the results directory"
                    return None, replace(answer, result=None, error=reason)
            time.sleep(POLL_SECONDS)

    def _pass_on(self) -> None:
        with suppress(self._ray.exceptions.RayError):
            for number, report in self._ray.get(self._mailbox.take.remote(), timeout=SECONDS_TO_STOP):
                self._watcher.reported(number, report)

    def _stop(self) -> None:
        """Interrupt the workers; what they committed stays, and the same grid continues from there."""
        for reference in self._pending:
            with suppress(Exception):
                self._ray.cancel(reference, force=False)
        with suppress(Exception):
            self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=SECONDS_TO_STOP)


class _Mailbox:
    """Keeps what workers report until it is fetched; lives on the cluster."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, Mapping[str, Any]]] = []

    def put(self, number: int, report: Mapping[str, Any]) -> None:
        self._reports.append((number, report))

    def take(self) -> list[tuple[int, Mapping[str, Any]]]:
        reports, self._reports = self._reports, []
        return reports


def _work(task: CellTask, mailbox: Any) -> CellAnswer:
    """Run a cell in a worker; when it is cancelled, or its node goes away, a training saves the step that it is at."""
    import ray

    node = ray.get_runtime_context().get_node_id()

    def report(number: int, what: Mapping[str, Any]) -> None:
        mailbox.put.remote(number, {**what, "node": node})

    try:
        with preemption.handling():
            return run_cell(task, report)
    except preemption.Interrupted as end:
        if end.number == signal.SIGTERM:
            sys.exit(1)  # As Ray's own handler: the worker counts as lost, and the cell is begun again elsewhere.
        raise


def _reason(error: BaseException) -> str:
    if isinstance(error, LowbitError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
