"""Reads files of published results, and chooses the cells for a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lowbit.contracts import PublishedCell, PublishedResults
from lowbit.errors import LowbitError
from lowbit.recipe.explain import explain
from lowbit.registry import Registry

EMBEDDED = "embedded"
ANY_MODEL = "*"
MAXIMUM_BYTES = 10_000_000


def published_results(registry: Registry, paper: str | None, targets: Path | None) -> PublishedResults:
    """Return the results of a registered paper, or those of a file.

    Args:
        registry: Where papers are looked up.
        paper: Name of a registered paper; beside a file, the name that the file must have.
        targets: A file of one's own.

    Raises:
        LowbitError: The paper is unknown, neither is given, or the file does not hold up.
    """
    known = sorted(registry.table("paper"))
    if targets is not None:
        results = read_published(targets)
        if paper not in (None, results.paper):
            raise LowbitError(f"{targets} holds the results of {results.paper!r}, but --paper asks for {paper!r}")
        return results
    if paper not in known:
        given = "no paper is named" if paper is None else f"there is no paper named {paper!r}"
        raise LowbitError(f"{given}; known: {', '.join(known) or 'none'}; or give a file with --targets")
    file = registry.published_file(paper)
    results = read_published(file.path)
    if results.paper != file.name:
        raise LowbitError(f"{file.path} holds the results of {results.paper!r}; its name must be {results.paper}.json")
    return results


def read_published(path: Path) -> PublishedResults:
    """Read and validate a file of published results.

    Raises:
        LowbitError: The file cannot be read, is no JSON, or breaks the format; the message names line and key.
    """
    text = _read(path)
    try:
        json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise LowbitError(f"{path}, line {error.lineno}, is no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise LowbitError(f"{path} is no JSON of published results: {error}") from error
    try:
        return PublishedResults.model_validate_json(text)
    except ValidationError as error:
        raise LowbitError(explain(error, PublishedResults, _place(path, text, error))) from error


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise LowbitError(f"{path} has over {MAXIMUM_BYTES} bytes; this is no file of published results")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LowbitError(f"the published results in {path} cannot be read: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"an object has the key {twice[0]!r} twice")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number that JSON has")


def _place(path: Path, text: str, error: ValidationError) -> str:
    """Name the file and the line of its first problem."""
    line = _line_of(text, error.errors()[0]["loc"])
    return str(path) if line is None else f"{path}, line {line}"


def _line_of(text: str, location: Sequence[str | int]) -> int | None:
    """Return the line of a key or list item in JSON text, or of the innermost thing around it that is there."""
    try:
        # JSON is YAML, and only the YAML parser says where a value stands.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    if node is None:
        return None
    line: int = node.start_mark.line
    for part in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line, found[1]
    return line + 1


def cells_for(results: PublishedResults, model: str | None) -> list[PublishedCell]:
    """Return the cells for a model, in the file's order.

    A cell's model matches the string that was given, the folder's name, or, for a folder, a hub id that ends with the
    folder's name; `*` matches every model.

    Args:
        results: The published results.
        model: Folder or hub id; `None` is the embedded model, which is called `embedded`.

    Raises:
        LowbitError: There is none; the message lists the models that have cells.
    """
    chosen = [cell for cell in results.cells if _matches(cell.model, model)]
    if not chosen:
        models = ", ".join(dict.fromkeys(cell.model for cell in results.cells))
        raise LowbitError(
            f"{results.paper} has no published cell for {model or 'the embedded model'}; models with cells: {models}"
        )
    return chosen


def _matches(named: str, model: str | None) -> bool:
    if named == ANY_MODEL:
        return True
    if model is None:
        return named == EMBEDDED
    folder = Path(model)
    if not folder.is_dir():
        return named == model
    return named in (model, model.rstrip("/")) or named.rstrip("/").split("/")[-1] == folder.resolve().name


def only(cells: Iterable[PublishedCell], metrics: Sequence[str], labels: Sequence[str]) -> list[PublishedCell]:
    """Keep the cells of some tasks or metrics, and those whose label holds one of some texts.

    Args:
        cells: The cells of a model.
        metrics: Names of tasks or metrics; empty keeps all.
        labels: Parts of labels, upper or lower case; empty keeps all.

    Raises:
        LowbitError: A name or text fits no cell, or no cell is left.
    """
    given = list(cells)
    known = list(dict.fromkeys(name for cell in given for name in (*cell.tasks, cell.metric)))
    for name in metrics:
        if name not in known:
            raise LowbitError(f"--metric {name!r} is in no cell of this model; known: {', '.join(known)}")
    for text in labels:
        if not any(text.lower() in cell.label.lower() for cell in given):
            rows = ", ".join(dict.fromkeys(cell.label for cell in given))
            raise LowbitError(f"--row {text!r} is in no row of this model; rows: {rows}")
    kept = [cell for cell in given if not metrics or set(metrics) & {*cell.tasks, cell.metric}]
    kept = [cell for cell in kept if not labels or any(text.lower() in cell.label.lower() for text in labels)]
    if not kept:
        raise LowbitError("no cell of this model has both what --metric and what --row ask for")
    return kept
