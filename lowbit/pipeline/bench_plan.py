"""What a bench will do: every parent with its methods, checked before the first weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowbit.durable import make_directory
from lowbit.evaluation.corpora import model_positions
from lowbit.evaluation.fit import check_documents_fit, check_perplexity_windows
from lowbit.evaluation.prepare import PreparedTasks, prepare_tasks
from lowbit.models.streamed import read_config
from lowbit.pipeline.bench_options import BenchOptions, checkpoint_path
from lowbit.pipeline.load import load_tokenizer
from lowbit.pipeline.prepare import Preparation, model_folder, prepare
from lowbit.pipeline.quantize import require_writable
from lowbit.recipe import Recipe


@dataclass(frozen=True)
class MethodCell:
    """One model under one method.

    Args:
        recipe: The recipe.
        ready: What is known of it before the first weight is read; `None` where it runs elsewhere.
        checkpoint: Where its checkpoint lies.
    """

    recipe: Recipe
    ready: Preparation | None
    checkpoint: Path


@dataclass(frozen=True)
class ParentGroup:
    """A parent and the methods that are judged beside it.

    Args:
        recipe: The first recipe that asked for the parent.
        tasks: What it is evaluated on.
        cells: Its methods in their order.
    """

    recipe: Recipe
    tasks: PreparedTasks
    cells: list[MethodCell] = field(default_factory=list)


def plan_bench(recipes: Sequence[Recipe], options: BenchOptions, elsewhere: bool = False) -> list[ParentGroup]:
    """Check everything that can be known to fail, and return what is to be done.

    Args:
        recipes: Any number of methods and models.
        options: How to run.
        elsewhere: Whether other processes run it: this one needs no device, and keeps no calibration tokens.

    Raises:
        LowbitError: A model, a task, a data set or a recipe does not hold up, or the results directory cannot be
            written.
    """
    make_directory(options.folder)
    prepared: dict[str, PreparedTasks] = {}
    groups: dict[str, ParentGroup] = {}
    for recipe in recipes:
        evaluation = recipe.eval.model_dump_json()
        if evaluation not in prepared:
            options.announce(f"loading tasks {', '.join(recipe.eval.tasks)}")
            prepared[evaluation] = prepare_tasks(recipe.eval, options.extra_tasks)
        tasks = prepared[evaluation]
        asked = recipe.model.model_dump_json() + evaluation
        if asked not in groups:
            _check_fit(recipe, tasks)
        group = groups.setdefault(asked, ParentGroup(recipe, tasks))
        if recipe.quantizer is not None:
            ready = prepare(recipe, "cpu" if elsewhere else options.device)
            checkpoint = checkpoint_path(options.folder, recipe, ready)
            require_writable(checkpoint)
            group.cells.append(MethodCell(recipe, None if elsewhere else ready, checkpoint))
    return list(groups.values())


def _check_fit(recipe: Recipe, tasks: PreparedTasks) -> None:
    folder = model_folder(recipe)
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    config = read_config(folder, recipe.model.trust_remote_code)
    length = recipe.eval.max_length or model_positions(config) or 2048
    check_documents_fit(tasks, tokenizer, length, recipe.eval)
    check_perplexity_windows(tasks, tokenizer, config, recipe.eval)
