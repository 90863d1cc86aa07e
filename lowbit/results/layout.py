"""Of which types the sections of a result file must be, so that what reads them need not look again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.errors import LowbitError

MOST_TASKS = 5000
"""Tasks and groups of one result; the largest collections of benchmarks have under a thousand."""
LONGEST_NAME = 500
"""Characters of the name of a task, a metric, a method or a model; drawing one takes time and memory."""
LARGEST_SIZE = 1e18
"""Bytes or bits; beyond all checkpoints."""
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "list": list,
    "text": str,
    "number": (int, float),
}
_SECTIONS: Mapping[str, str] = {
    "results": "object",
    "results.*": "object",
    "groups": "object",
    "groups.*": "object",
    "group_subtasks": "object",
    "group_subtasks.*": "list",
    "group_subtasks.*.*": "text",
    "configs": "object",
    "configs.*": "object",
    "versions": "object",
    "n-shot": "object",
    "n-samples": "object",
    "n-samples.*": "object",
    "higher_is_better": "object",
    "higher_is_better.*": "object",
    "config": "object",
    "config.limit": "number",
    "system_instruction_sha": "text",
    "chat_template_sha": "text",
    "lowbit": "object",
    "lowbit.recipe": "object",
    "lowbit.checkpoint_recipe": "object",
    "lowbit.parent": "object",
    "lowbit.bits": "object",
    "lowbit.bits.items": "object",
    "lowbit.bits.nominal_bits": "number",
    "lowbit.bits.quantized_bits": "number",
    "lowbit.bits.whole_file_bits": "number",
    "lowbit.chance": "object",
    "lowbit.chance.*": "number",
    "lowbit.data_sha256": "object",
    "lowbit.data_sha256.*": "text",
    "lowbit.versions": "object",
    "lowbit.plugins": "object",
    "lowbit.coverage": "object",
    "lowbit.coverage.share": "number",
    "lowbit.coverage.skipped": "object",
    "lowbit.coverage.other_matrices": "object",
    "lowbit.calibration": "object",
    "lowbit.training": "object",
    "lowbit.in_domain_tasks": "list",
    "lowbit.cost": "object",
    "lowbit.cost.seconds": "number",
    "lowbit.cost.peak_memory_bytes": "number",
    "lowbit.kernels": "list",
    "lowbit.packed_against_dense": "object",
    "lowbit.speed": "object",
    "lowbit.speed.*": "object",
    "lowbit.speed.*.tokens_per_second": "number",
    "lowbit.recovery": "object",
    "lowbit.recovery.*": "object",
    "lowbit.recovery.*.*": "object",
    "lowbit.layers": "list",
    "lowbit.layers.*": "object",
    "lowbit.layers.*.weights": "number",
    "lowbit.layers.*.diagnostics": "object",
    "lowbit.layers.*.untrained": "object",
    "lowbit.training.distillation": "object",
    "lowbit.training.distillation.losses": "list",
    "lowbit.training.distillation.held_out": "list",
    "lowbit.training.distillation.held_out.*": "list",
    "lowbit.training.reconstruction": "list",
    "lowbit.training.reconstruction.*": "object",
    "lowbit.training.reconstruction.*.losses": "list",
}
"""Kind of each section, where `*` is every entry of the one before; absent ones and null fit every kind."""


def require_layout(content: Mapping[str, Any]) -> None:
    """Check that the sections of a result that are there have the expected types.

    Raises:
        LowbitError: One has not; the message names it.
    """
    if len(content["results"]) > MOST_TASKS:
        raise LowbitError(f"has {len(content['results'])} tasks, more than the limit of {MOST_TASKS}")
    _require_names(content)
    for place, kind in _SECTIONS.items():
        *above, last = place.split(".")
        for name, value in _entries(content, above, last, ""):
            if value is not None and not isinstance(value, _KINDS[kind]):
                article = "an" if kind == "object" else "a"
                raise LowbitError(
                    f"is not laid out as a result: section `{name}` is not {article} {kind}, but {_called(value)}"
                )


def _require_names(content: Mapping[str, Any]) -> None:
    """Refuse names that are too long to be drawn, and sizes that no file has.

    Raises:
        LowbitError: There is one; the message says where.
    """
    ours = _object(content, "lowbit")
    bits, items = _object(ours, "bits"), _object(_object(ours, "bits"), "items")
    results = [_object(content, "results"), _object(content, "groups")]
    named = [ours.get("method"), _object(ours, "parent").get("name"), content.get("model_name")]
    for section in results:
        named += [*section, *(name for entry in section.values() if isinstance(entry, dict) for name in entry)]
    for name in [*named, *items]:
        if isinstance(name, str) and len(name) > LONGEST_NAME:
            raise LowbitError(
                f"has the name {name[:50]!r}... of {len(name)} characters; at most {LONGEST_NAME} are read"
            )
    for name, size in [*bits.items(), *items.items()]:
        if isinstance(size, int | float) and not 0 <= size <= LARGEST_SIZE:
            raise LowbitError(f"has {size:.3g} as `{name[:50]}`, which no file has")


def _object(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _entries(value: Any, above: list[str], last: str, name: str) -> list[tuple[str, Any]]:
    """Return every value at a place below a section whose kind is known to fit, with its whole name."""
    if not above:
        return [(f"{name}{key}", entry) for key, entry in _under(value, last)]
    return [
        found for key, entry in _under(value, above[0]) for found in _entries(entry, above[1:], last, f"{name}{key}.")
    ]


def _under(value: Any, key: str) -> list[tuple[str, Any]]:
    if value is None:
        return []
    if key != "*":
        return [(key, value[key])] if isinstance(value, dict) and key in value else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [(str(key), entry) for key, entry in pairs]


def _called(value: object) -> str:
    kinds = [kind for kind, types in _KINDS.items() if isinstance(value, types)]
    return f"the {kinds[0]} {value!r:.40}" if kinds and kinds[0] in ("text", "number") else f"{type(value).__name__}"
