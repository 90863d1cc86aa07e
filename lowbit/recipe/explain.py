"""Turns pydantic's validation errors into one line that says what to do."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

MOST_PROBLEMS = 8
LONGEST_PROBLEM = 400


def explain(error: ValidationError, model: type[BaseModel], what: str) -> str:
    """Describe every problem in one line, with the nearest known key for an unknown one.

    Args:
        error: What pydantic raised.
        model: The model that was validated, to look up known keys.
        what: What was validated, for the beginning of the line (`"recipe"`).
    """
    problems = [_problem(item, model)[:LONGEST_PROBLEM] for item in error.errors()]
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return f"{what}: " + "; ".join(problems[:MOST_PROBLEMS]) + more


def shown(value: object) -> str:
    """Return the beginning of a value's Python form; some values have none, or one of megabytes."""
    try:
        # A text has at least as many characters as its Python form shows of it.
        text = repr(value[:LONGEST_PROBLEM] if isinstance(value, str) else value)
    except (ValueError, RecursionError):
        return f"something of type {type(value).__name__}"
    return text if len(text) <= LONGEST_PROBLEM // 2 else f"{text[: LONGEST_PROBLEM // 2]}..."


def _problem(item: Any, model: type[BaseModel]) -> str:
    path = [str(part) for part in item["loc"]]
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        return _unknown(name, path, model)
    if item["type"] == "missing":
        return f"{name} is missing"
    came = f", got {shown(item['input'])}" if not isinstance(item["input"], dict) else ""
    message = item["msg"].removeprefix("Value error, ")
    return f"{name}: {message}{came}" if name else message


def _unknown(name: str, path: list[str], model: type[BaseModel]) -> str:
    known = _keys_at(path[:-1], model)
    nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(known)}"
    return f"unknown key {name[:100]!r}; {hint}" if not name.isprintable() else f"unknown key {name[:100]}; {hint}"


def _keys_at(path: list[str], model: type[BaseModel]) -> list[str]:
    current: Any = model
    for part in path:
        if part.isdigit():
            continue
        field = current.model_fields.get(part)
        candidates = [] if field is None else _models_in(field.annotation)
        if not candidates:
            return []
        current = candidates[0]
    return list(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
