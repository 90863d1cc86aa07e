"""One cell of a grid as a worker runs it: from plain values to a result file, at most once."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowbit.durable import write_json
from lowbit.errors import LowbitError
from lowbit.pipeline.bench_cells import evaluate_parent, evaluation_key, run_method, write_parent
from lowbit.pipeline.bench_options import CHECKPOINTS, BenchOptions
from lowbit.pipeline.bench_plan import plan_bench
from lowbit.pipeline.finished_results import FinishedResults, cell_turn, find_finished
from lowbit.progress import RunLines, RunState
from lowbit.recipe import Recipe
from lowbit.registry import registry
from lowbit.results.store import StoredResult

SECONDS_BETWEEN_REPORTS = 1.0


@dataclass(frozen=True)
class CellTask:
    """What a worker is told.

    Args:
        number: The cell's position in the grid; a parent's is that of its first cell.
        role: Whether the parent is evaluated, or a method is run.
        recipe: The recipe, as plain values.
        sha256: The recipe's hash, as whoever sends it sees it.
        output_path: Where results go, on storage that every worker sees.
        device: Where models are worked on.
        run: Name of the run.
        threads: How many threads to compute with.
        working_directory: What relative paths are relative to.
        plugins: Plugins that are loaded by `--plugin`.
        version: lowbit's version.
        extra_tasks: Task configurations beside lm-eval's own.
        refresh_parent: Evaluate the parent again although its result is cached.
        speed: Time greedy decoding.
        skip_finished: Whether another run's result of the same cell will do; without it only this run's does.
        checkpoint: Name of the checkpoint that the sender expects; empty for a parent.
        key: Key of the parent's evaluation that the sender expects.
        most_attempts: How often the cell may be begun.
    """

    number: int
    role: Literal["parent", "quantized"]
    recipe: Mapping[str, Any]
    sha256: str
    output_path: str
    device: str
    run: str
    threads: int
    working_directory: str
    plugins: Sequence[str] = ()
    version: str = ""
    extra_tasks: Sequence[dict[str, Any]] = ()
    refresh_parent: bool = False
    speed: bool = False
    skip_finished: bool = False
    checkpoint: str = ""
    key: str = ""
    most_attempts: int = 1


@dataclass(frozen=True)
class CellAnswer:
    """What a worker answers.

    Args:
        number: The cell's position.
        result: The result file; `None` where there is none.
        error: Why there is none.
    """

    number: int
    result: str | None
    error: str | None = None


Report = Callable[[int, Mapping[str, Any]], None]
"""Is told a cell's number and what is known of it: `line`, or `title`, `counters` and `memory`."""


def run_cell(task: CellTask, report: Report) -> CellAnswer:
    """Run a cell, or find the result of an earlier attempt of the same run.

    An error that a user can mend is an answer; any other is raised.

    Args:
        task: What to do.
        report: Is told how far the cell has come.
    """
    try:
        recipe = _entered(task)
        with _observed(task, recipe, report):
            return CellAnswer(task.number, str(_result_of(task, recipe, report).path))
    except LowbitError as error:
        return CellAnswer(task.number, None, str(error))


def _entered(task: CellTask) -> Recipe:
    """Make this process like the one that sent the task: working directory, plugins, threads.

    Raises:
        LowbitError: The worker is not set up as the sender is.
    """
    import torch

    version = importlib.metadata.version("lowbit")
    if version != task.version:
        raise LowbitError(f"this worker has lowbit {version}, and the grid was started by {task.version}; install one")
    try:
        os.chdir(task.working_directory)
    except OSError as error:
        raise LowbitError(
            f"the directory {task.working_directory}, where the grid was started, is not on this worker: {error}; "
            "start it in a directory on storage that all nodes share"
        ) from error
    torch.set_num_threads(task.threads)
    for plugin in task.plugins:
        registry().load(plugin)
    recipe = Recipe.model_validate(task.recipe)
    if recipe.sha256() != task.sha256:
        raise LowbitError("this worker reads the recipe in another way than the sender; install the same packages")
    return recipe


def _result_of(task: CellTask, recipe: Recipe, report: Report) -> StoredResult:
    """Return this run's result of a cell; attempts take turns, so that a second one finds what the first one wrote."""
    options = BenchOptions(
        output_path=Path(task.output_path),
        device=task.device,
        announce=lambda text: report(task.number, {"line": text}),
        refresh_parent=task.refresh_parent and task.role == "parent",
        extra_tasks=task.extra_tasks,
        speed=task.speed,
        skip_finished=True,
        run=task.run,
    )
    with cell_turn(options, task.role, recipe, task.key if task.role == "parent" else task.sha256):
        attempts = _count_attempt(task, options.folder)
        result = _found_or_made(task, recipe, options)
        attempts.unlink(missing_ok=True)
    return result


def _count_attempt(task: CellTask, folder: Path) -> Path:
    """Note that the cell is begun, and return where.

    A cluster begins a cell anew whenever its worker dies; one that takes all memory would kill workers for ever.

    Raises:
        LowbitError: It was begun too often.
    """
    path = folder / CHECKPOINTS / f"cell-{task.role}-{task.sha256[:16]}.attempts.json"
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        before = int(noted["attempts"]) if noted["run"] == task.run else 0
    except (OSError, ValueError, KeyError, TypeError):
        before = 0
    if before >= task.most_attempts:
        path.unlink(missing_ok=True)
        raise LowbitError(
            f"its worker was lost {before} times: killed, out of memory, or on nodes that went away; "
            "--dry_run forecasts its memory, and resources.memory reserves it"
        )
    write_json(path, {"run": task.run, "attempts": before + 1})
    return path


def _found_or_made(task: CellTask, recipe: Recipe, options: BenchOptions) -> StoredResult:
    (group,) = plan_bench([recipe], options)
    if task.key != evaluation_key(recipe, group.tasks, task.device) or (
        task.checkpoint and task.checkpoint != group.cells[0].checkpoint.name
    ):
        raise LowbitError(
            "this worker would compute something else than the sender asks for: packages, plugins, data or the model's "
            "files differ between them"
        )
    run = None if task.skip_finished and not task.refresh_parent else task.run
    parent, found = find_finished(group, options, FinishedResults(options.folder), run)
    if task.role == "parent":
        return parent or write_parent(recipe, evaluate_parent(recipe, group.tasks, options), options)
    (cell,) = group.cells
    return found[0] or run_method(cell, evaluate_parent(recipe, group.tasks, options), group.tasks, options)


@contextmanager
def _observed(task: CellTask, recipe: Recipe, report: Report) -> Iterator[None]:
    """Report what the event hooks say, in lines, and once a second how far the cell has come."""
    state = RunState([recipe.to_dict()])
    lines = RunLines(state, lambda line: report(task.number, {"line": line}))
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(SECONDS_BETWEEN_REPORTS):
            report(task.number, snapshot(state))

    teller = threading.Thread(target=tell, daemon=True)
    with registry().observing(lines), _warnings_reported(task.number, report):
        teller.start()
        try:
            yield
        finally:
            ended.set()


@contextmanager
def _warnings_reported(number: int, report: Report) -> Iterator[None]:
    """Report what lowbit warns of, such as that it waits for another process."""

    class Reporter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            report(number, {"line": f"warning: {record.getMessage()}"})

    handler = Reporter(logging.WARNING)
    logging.getLogger("lowbit").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("lowbit").removeHandler(handler)


def snapshot(state: RunState) -> dict[str, Any]:
    """Return what there is to see of a run at a moment, as plain values."""
    state.memory.look()
    counters = [(counter.text, counter.done, counter.total) for counter in state.counters]
    return {"title": state.title, "counters": counters, "memory": str(state.memory)}
