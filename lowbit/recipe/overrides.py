"""Overrides from the command line: `--set a.b=c`, for all methods or for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.documents import parse_yaml
from lowbit.errors import LowbitError

MOST_KEYS = 16
"""From the outermost to the innermost of an override; recipes have four."""


@dataclass(frozen=True)
class Override:
    """One `--set`.

    Args:
        path: Keys from the outermost inwards.
        value: The parsed YAML value.
        method: The only method it applies to, or `None` for all.
    """

    path: tuple[str, ...]
    value: Any
    method: str | None = None


def parse_override(text: str) -> Override:
    """Parse `a.b=value` or `method:a.b=value`; the value is YAML.

    Raises:
        LowbitError: There is no `=`, a key is empty, or the value is no YAML.
    """
    key, separator, value = text.partition("=")
    method, colon, path = key.rpartition(":")
    parts = tuple(part.strip() for part in path.split("."))
    if not separator or not all(parts) or (colon and not method.strip()):
        raise LowbitError(
            f"--set {text[:200]!r}: expected KEY.KEY=VALUE or METHOD:KEY.KEY=VALUE, such as quantizer.group_size=128"
        )
    if parts == ("method",):
        raise LowbitError(f"--set {text[:200]!r}: the method is chosen by --method, or by the recipe file")
    if len(parts) > MOST_KEYS:
        raise LowbitError(f"--set {text[:200]!r}: {len(parts)} keys inside each other; no recipe has over {MOST_KEYS}")
    return Override(parts, parse_yaml(value, f"--set {text[:200]!r}: the value"), method.strip() or None)


def apply_overrides(recipe: Mapping[str, Any], overrides: Iterable[Override], method: str) -> dict[str, Any]:
    """Return `recipe` with the overrides that apply to `method`; those for one method win over those for all."""
    layers: dict[str | None, dict[str, Any]] = {None: {}, method: {}}
    for override in overrides:
        if override.method in layers:
            layers[override.method] = merge(layers[override.method], _nested(override.path, override.value))
    return lay_over(lay_over(recipe, layers[None]), layers[method])


def lay_over(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with another layer over it; a quantizer that the layer switches to starts from its defaults.

    Raises:
        LowbitError: The layer gives both `ignore` and `modules_to_not_convert`, which are the same.
    """
    layer = dict(layer)
    if "ignore" in layer:
        if "modules_to_not_convert" in layer:
            raise LowbitError("`ignore` is another name of `modules_to_not_convert`: give one of them")
        layer["modules_to_not_convert"] = layer.pop("ignore")
    old, new = base.get("quantizer"), layer.get("quantizer")
    merged = merge(base, layer)
    if isinstance(old, Mapping) and isinstance(new, Mapping) and new.get("name", old.get("name")) != old.get("name"):
        merged["quantizer"] = dict(new)
    return merged


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `extra` laid over it, mappings merged key by key."""
    result = dict(base)
    for key, value in extra.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    result: dict[str, Any] = value
    return result
