"""From published cells to recipes: what a reproduction runs, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.contracts import PublishedCell, PublishedProtocol, PublishedResults
from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import CORPORA
from lowbit.pipeline.published import EMBEDDED
from lowbit.recipe import Recipe, resolve_recipe
from lowbit.recipe.overrides import merge
from lowbit.registry import Registry, registry, unknown_name

TOKEN_FILE = ".npz"


@dataclass(frozen=True)
class PlannedRun:
    """One quantization with everything that is measured on it.

    Args:
        recipe: What to run.
        cells: The cells that it answers.
    """

    recipe: Recipe
    cells: tuple[PublishedCell, ...]


@dataclass(frozen=True)
class Plan:
    """What a reproduction runs and what it leaves out.

    Args:
        results: The published results.
        model: Folder or hub id; `None` is the embedded model.
        cells: The chosen cells, in the file's order.
        runs: Different recipes, each once.
        skipped: Why a cell is not run, by its identity.
        changes: Where the command departs from the published protocol.
    """

    results: PublishedResults
    model: str | None
    cells: tuple[PublishedCell, ...]
    runs: tuple[PlannedRun, ...]
    skipped: Mapping[str, str]
    changes: tuple[str, ...]

    @property
    def model_name(self) -> str:
        """What the result file calls the model."""
        path = Path(self.model or EMBEDDED)
        return path.resolve().name if path.is_dir() else path.name


def make_plan(
    results: PublishedResults, cells: Sequence[PublishedCell], model: str | None, flags: Mapping[str, Any]
) -> Plan:
    """Turn cells into recipes; cells that differ only in what is measured share one.

    Args:
        results: Where the cells come from.
        cells: The chosen cells.
        model: Folder or hub id; `None` is the embedded model.
        flags: Recipe keys that the user sets over the published protocol.

    Raises:
        LowbitError: A cell's options or protocol do not fit its method; the message names the cell.
    """
    skipped: dict[str, str] = {}
    bases: dict[str, Recipe] = {}
    answered: dict[str, list[PublishedCell]] = {}
    for cell in cells:
        reason = _reason_to_skip(cell, registry())
        if reason:
            skipped[cell.identity] = reason
            continue
        base = _recipe_without_tasks(cell, results.protocol_of(cell), model, flags)
        bases.setdefault(base.sha256(), base)
        answered.setdefault(base.sha256(), []).append(cell)
    runs = tuple(
        PlannedRun(_with_tasks(base, answered[key], results), tuple(answered[key])) for key, base in bases.items()
    )
    changes = tuple(
        dict.fromkeys(text for run in runs for cell in run.cells for text in _changes(results, cell, flags))
    )
    return Plan(results, model, tuple(cells), runs, skipped, changes)


def _reason_to_skip(cell: PublishedCell, known: Registry) -> str:
    if cell.method is None:
        return cell.note
    methods = known.table("method")
    if cell.method not in methods:
        return unknown_name("method", cell.method, methods)
    if known.method(cell.method).quantizer is None:
        return f"method {cell.method!r} quantizes nothing; give the unquantized model's number as `parent`"
    return ""


def _recipe_without_tasks(
    cell: PublishedCell, protocol: PublishedProtocol, model: str | None, flags: Mapping[str, Any]
) -> Recipe:
    calibration = {"source": protocol.calibration, "n_samples": protocol.n_samples, "seq_len": protocol.seq_len}
    if str(flags.get("calibration", {}).get("source", "")).endswith(TOKEN_FILE):
        # A token file is a sample of its own, with its own number and length of sequences.
        calibration = {}
    published: dict[str, Any] = {
        "model": {} if model is None else {"path": model},
        "quantizer": cell.options,
        "calibration": {key: value for key, value in calibration.items() if value is not None},
        "eval": {} if protocol.num_fewshot is None else {"num_fewshot": protocol.num_fewshot},
    }
    if protocol.seed is not None:
        published["seed"] = protocol.seed
    try:
        return resolve_recipe(registry(), cell.method, flags=merge(published, flags))
    except LowbitError as error:
        raise LowbitError(f"cell {cell.label!r} ({cell.source}): {error}") from error


def _with_tasks(base: Recipe, cells: Sequence[PublishedCell], results: PublishedResults) -> Recipe:
    tasks = tuple(dict.fromkeys(task for cell in cells for task in task_names(cell, results)))
    bare = sorted(CORPORA.keys() & set(tasks))
    for task in bare:
        if any(other.startswith(f"{task}@") for other in tasks):
            raise LowbitError(
                f"{task} is asked for with and without a context length: state context_length in every cell"
            )
    return base.model_copy(update={"eval": base.eval.model_copy(update={"tasks": tasks})})


def task_names(cell: PublishedCell, results: PublishedResults) -> list[str]:
    """Return a cell's tasks as the evaluation knows them: token perplexities carry the context length."""
    length = results.protocol_of(cell).context_length
    return [f"{task}@{length}" if task in CORPORA and length is not None else task for task in cell.tasks]


def _changes(results: PublishedResults, cell: PublishedCell, flags: Mapping[str, Any]) -> Iterator[str]:
    """Say where the user's flags depart from a cell's protocol."""
    protocol = results.protocol_of(cell)
    given = {**flags.get("calibration", {}), "seed": flags.get("seed")}
    published = {"source": protocol.calibration, "n_samples": protocol.n_samples, "seq_len": protocol.seq_len}
    for key, stated in {**published, "seed": protocol.seed}.items():
        if given.get(key) is not None and given[key] != stated:
            name = "calibration" if key == "source" else key
            yield f"{name} {given[key]} (published: {'not stated' if stated is None else stated})"
    if flags.get("eval", {}).get("limit") is not None:
        yield f"limit {flags['eval']['limit']:g} (published: everything)"


def metric_text(cell: PublishedCell, results: PublishedResults) -> str:
    """Return tasks and metric of a cell in words."""
    tasks = task_names(cell, results)
    joined = tasks[0] if len(tasks) == 1 else f"mean of {', '.join(tasks)}:"
    return f"{joined} {cell.metric}"


def about(cell: PublishedCell) -> str:
    """Return a cell's source, who measured it, and how sure it is."""
    marks = [cell.relation] if cell.relation != "own" else []
    marks += [cell.evidence] if cell.evidence != "read" else []
    return ", ".join([cell.source, *marks])
