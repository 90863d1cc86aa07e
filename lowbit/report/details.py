"""How each run was made: protocol of its tasks, recipe, calibration, versions, cost; as text, section by section."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.report.numbers import bytes_text, number_text
from lowbit.results.protocol import model_protocol, task_protocol
from lowbit.results.store import StoredResult


@dataclass(frozen=True)
class Section:
    """A heading and its pairs of a name and a text."""

    title: str
    pairs: tuple[tuple[str, str], ...]


def details_of(result: StoredResult) -> tuple[Section, ...]:
    """Return everything that is known of how a run was made; sections without content are left out."""
    record = result.lowbit
    sections = (
        Section("Run", tuple(_run(result))),
        Section("Model run with", model_protocol(result)),
        Section("Tasks", tuple((task, task_protocol(result, task).described()) for task in _tasks(result))),
        Section("Calibration", _pairs(record.get("calibration"))),
        Section("Cost", tuple(_cost(result))),
        Section("Quantized part", _pairs(_coverage(record.get("coverage")))),
        Section("Packed against dense", _pairs(record.get("packed_against_dense"))),
        Section("Versions", _pairs(record.get("versions") or _harness_versions(result))),
        Section("Plugins", _pairs(record.get("plugins"))),
    )
    return tuple(section for section in sections if section.pairs)


def recipe_text(result: StoredResult) -> str:
    """Return the recipe as indented JSON; empty where there is none."""
    recipe = result.lowbit.get("recipe")
    return json.dumps(recipe, indent=2, ensure_ascii=False, default=str) if isinstance(recipe, Mapping) else ""


def _run(result: StoredResult) -> Iterable[tuple[str, str]]:
    record = result.lowbit
    yield "file", result.path.name
    yield "ended", result.date.strftime("%Y-%m-%d %H:%M:%S UTC")
    known = {
        "seed": result.seed,
        "recipe sha256": result.recipe_sha256,
        "parent sha256": (record.get("parent") or {}).get("sha256"),
        "checkpoint sha256": record.get("checkpoint_sha256"),
        "device": record.get("device") or (result.harness.get("config") or {}).get("device"),
        "evaluated as": record.get("backend"),
        "kernels": ", ".join(map(str, record.get("kernels") or ())) or None,
        "calibrated in the domain of": ", ".join(map(str, record.get("in_domain_tasks") or ())) or None,
        "taken from the cache of parents": "yes" if record.get("from_cache") else None,
    }
    yield from ((name, str(value)) for name, value in known.items() if value is not None)


def _tasks(result: StoredResult) -> list[str]:
    return list(dict.fromkeys(metric.task for metric in result.metrics))


def _cost(result: StoredResult) -> Iterable[tuple[str, str]]:
    cost = result.lowbit.get("cost") or {}
    if "seconds" in cost:
        yield "quantization", f"{number_text(cost['seconds'], 1)} s"
    for key, name in (("peak_memory_bytes", "peak memory"), ("peak_device_memory_bytes", "peak memory of the device")):
        if cost.get(key):
            yield name, bytes_text(cost[key])
    for form, speed in (result.lowbit.get("speed") or {}).items():
        if isinstance(speed, Mapping):
            yield f"decoding, {form}", f"{number_text(speed.get('tokens_per_second'), 1)} tokens a second"


def _coverage(coverage: Any) -> Any:
    if not isinstance(coverage, Mapping):
        return None
    skipped = [*(coverage.get("skipped") or ()), *(coverage.get("other_matrices") or ())]
    share = coverage.get("share")
    return {
        "matrices": coverage.get("quantized_targets"),
        "share of the decoder's weights": None if share is None else f"{100 * share:.2f} %",
        "left as they were": ", ".join(map(str, skipped)) or "none",
    }


def _harness_versions(result: StoredResult) -> dict[str, Any]:
    return {
        "lm_eval": result.harness.get("lm_eval_version"),
        "transformers": result.harness.get("transformers_version"),
    }


def _pairs(values: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(values, Mapping):
        return ()
    return tuple((str(name), _text(value)) for name, value in values.items() if value is not None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
