"""The whole run: parent and every method through the same evaluation, one result file each, one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lowbit.distillation.processes import is_main_process, make_accelerator, several_processes
from lowbit.durable import make_directory
from lowbit.errors import LowbitError
from lowbit.pipeline.bench_cells import (
    EvaluatedParent,
    NotQuantizedError,
    evaluate_parent,
    evaluation_key,
    run_method,
    write_parent,
)
from lowbit.pipeline.bench_options import CHECKPOINTS, EVALUATION_PACKAGES, PARENTS, BenchOptions, model_name
from lowbit.pipeline.bench_plan import MethodCell, ParentGroup, plan_bench
from lowbit.pipeline.composition_check import require_composition
from lowbit.pipeline.finished_results import FinishedResults, cell_turn, find_finished
from lowbit.pipeline.resources import require_device
from lowbit.pipeline.taking_part import let_others_go, refusal_told, take_part
from lowbit.recipe import Recipe
from lowbit.registry import registry
from lowbit.results.rows import row_of
from lowbit.results.store import StoredResult
from lowbit.results.table import Row

__all__ = ["CHECKPOINTS", "EVALUATION_PACKAGES", "PARENTS", "BenchOptions", "bench", "failed_cell", "failed_parent"]


def bench(recipes: Sequence[Recipe], options: BenchOptions) -> Iterator[Row]:
    """Evaluate every recipe's parent once and every recipe's quantized model, yielding rows as they are done.

    Everything that can be known to fail is checked before the first weight is read. A method that fails does not stop
    the others; its row carries the error. Of several processes the main one does all this; the others only take part in
    quantizations and yield nothing, and a quantization that fails ends them all.

    Args:
        recipes: Any number of methods and models.
        options: How to run.

    Raises:
        LowbitError: A model, a task, a data set or a recipe does not hold up.
    """
    for recipe in recipes:
        require_composition(recipe, registry())
    make_directory(options.folder)
    require_device(options.device)
    if several_processes():
        make_accelerator(options.device)
    if not is_main_process():
        take_part(recipes, options.device)
        return
    with refusal_told():
        groups = plan_bench(recipes, options)
        finished = FinishedResults(options.folder) if options.skip_finished else None
    for group in groups:
        yield from _run_group(group, options, finished)
    let_others_go()


def _run_group(group: ParentGroup, options: BenchOptions, finished: FinishedResults | None) -> Iterator[Row]:
    """Run a parent and its methods; what is finished is told from its result."""
    stored, found = find_finished(group, options, finished)
    parent: EvaluatedParent | None = None
    if stored is None or None in found:
        try:
            parent = evaluate_parent(group.recipe, group.tasks, options)
            stored = stored or _parent_result(group, parent, options)
        except LowbitError as error:
            yield failed_parent(group.recipe, error)
            return
    assert stored is not None
    yield row_of(stored)
    for cell, done in zip(group.cells, found, strict=True):
        if done is not None:
            yield row_of(done, stored)
        elif parent is not None:
            yield _run_cell(cell, parent, group, options, stored)


def _parent_result(group: ParentGroup, parent: EvaluatedParent, options: BenchOptions) -> StoredResult:
    """Write a parent's result, unless another process did so meanwhile and that will do."""
    key = evaluation_key(group.recipe, group.tasks, options.device) if options.skip_finished else ""
    with cell_turn(options, "parent", group.recipe, key):
        return _found_again(group, options)[0] or write_parent(group.recipe, parent, options)


def _found_again(group: ParentGroup, options: BenchOptions) -> tuple[StoredResult | None, list[StoredResult | None]]:
    return find_finished(group, options, FinishedResults(options.folder) if options.skip_finished else None)


def _run_cell(
    cell: MethodCell, parent: EvaluatedParent, group: ParentGroup, options: BenchOptions, stored: StoredResult
) -> Row:
    try:
        with cell_turn(options, "quantized", cell.recipe, cell.recipe.sha256()):
            made = _found_again(replace(group, cells=[cell]), options)[1][0]
            return row_of(made or run_method(cell, parent, group.tasks, options), stored)
    except LowbitError as error:
        if isinstance(error, NotQuantizedError) and several_processes():
            raise  # The other processes stopped midway, too, and wait for nothing that could still come.
        return failed_cell(cell.recipe, stored, error)


def failed_parent(recipe: Recipe, error: object) -> Row:
    """Return the row of a parent that could not be evaluated; its methods are left out."""
    return Row(model_name(recipe), "parent", error=str(error), recipe_sha256=recipe.sha256())


def failed_cell(recipe: Recipe, parent: StoredResult, error: object) -> Row:
    """Return the row of a method that failed."""
    return Row(
        model=parent.model,
        method=recipe.method,
        error=str(error),
        recipe_sha256=recipe.sha256(),
        parent_measured=parent.metrics,
        seed=recipe.seed,
    )
