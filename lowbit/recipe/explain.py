"""Turns pydantic's validation errors into one line that says what to do."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], what: str) -> str:
    """Describe every problem in one line, with the nearest known key for an unknown one.

    Args:
        error: What pydantic raised.
        model: The model that was validated, to look up known keys.
        what: What was validated, for the beginning of the line (`"recipe"`).
    """
    return f"{what}: " + "; ".join(_problem(item, model) for item in error.errors())


def _problem(item: Any, model: type[BaseModel]) -> str:
    path = [str(part) for part in item["loc"]]
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        return _unknown(name, path, model)
    if item["type"] == "missing":
        return f"{name} is missing"
    came = f", got {item['input']!r}" if not isinstance(item["input"], dict) else ""
    message = item["msg"].removeprefix("Value error, ")
    return f"{name}: {message}{came}" if name else message


def _unknown(name: str, path: list[str], model: type[BaseModel]) -> str:
    known = _keys_at(path[:-1], model)
    nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(known)}"
    return f"unknown key {name}; {hint}"


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
