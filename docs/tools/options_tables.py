"""Writes the tables of options in docs/methods/ from the quantizers' and losses' own declarations.

python docs/tools/options_tables.py
"""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from generated_parts import replace_part
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lowbit.registry import registry

PAGES = Path(__file__).resolve().parents[1] / "methods"
MARKER = re.compile(r"<!-- options: (quantizer|loss) ([\w-]+) -->")
BOUNDS = {Ge: ("from", "ge"), Gt: ("above", "gt"), Le: ("to", "le"), Lt: ("below", "lt")}


def options_table(kind: str, name: str) -> str:
    """Return the table of a quantizer's or a loss's options."""
    found = registry().quantizer(name) if kind == "quantizer" else registry().distillation_loss(name)
    config: type[BaseModel] = found.Config
    presets = getattr(config, "presets", {})
    lines = ["| option | values | default | what it does |", "| --- | --- | --- | --- |"]
    for option, field in config.model_fields.items():
        default = _default(option, field, presets)
        lines.append(f"| `{option}` | {_values(field)} | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


def _default(option: str, field: FieldInfo, presets: Any) -> str:
    if field.default is not None or option not in presets.get("paper", {}):
        return f"`{_text(field.default)}`"
    paper, code = (_text(presets[reading][option]) for reading in ("paper", "code"))
    return f"`{paper}`" if paper == code else f"`{paper}`; code: `{code}`"


def _values(field: FieldInfo) -> str:
    choices = [value for part in _parts(field.annotation) for value in _choices(part)]
    if choices:
        return ", ".join(f"`{_text(choice)}`" for choice in choices)
    kinds = {bool: "`true`, `false`", int: "whole number", float: "number"}
    parts = [part for part in _parts(field.annotation) if part is not type(None)]
    said = kinds.get(parts[0], "two whole numbers" if typing.get_origin(parts[0]) is tuple else "")
    limits = [f"{BOUNDS[type(m)][0]} {getattr(m, BOUNDS[type(m)][1])}" for m in field.metadata if type(m) in BOUNDS]
    return " ".join([said, *limits])


def _parts(annotation: Any) -> list[Any]:
    inside = typing.get_args(annotation)
    return [part for item in inside for part in _parts(item)] if _is_union(annotation) else [annotation]


def _is_union(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation) and typing.get_origin(annotation) is not Literal


def _choices(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value))
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def with_tables(page: str) -> str:
    """Return a page with every table of options written anew."""
    for marker in MARKER.finditer(page):
        page = replace_part(page, marker.group(0), "\n" + options_table(*marker.groups()))
    return page


def main() -> None:
    """Write the tables of every page."""
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
