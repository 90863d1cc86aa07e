"""What must agree before two numbers may stand in one column or be averaged: protocol, recipe, parent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.results.store import StoredResult

_NOT_OF_THE_CHECKPOINT = frozenset({"seed", "eval", "backend", "output_path", "model", "preset", "max_shard_size"})
"""Keys of a recipe that change neither how weights are quantized nor what the result is one of several seeds of."""


@dataclass(frozen=True)
class TaskProtocol:
    """How a task was asked, as pairs of a name and a value that can be read.

    Args:
        task: The task's name.
        settings: Version, few-shot examples, documents and what else decides the number.
        fewshot_seed: What the few-shot examples were drawn by; `None` without any.
    """

    task: str
    settings: tuple[tuple[str, str], ...]
    fewshot_seed: str | None = None

    def described(self, names: frozenset[str] | None = None) -> str:
        """Return the settings as text: all of them, or those with certain names."""
        chosen = [f"{name} {value}" for name, value in self.settings if names is None or name in names]
        return ", ".join(chosen)


def task_protocol(result: StoredResult, task: str) -> TaskProtocol:
    """Return how a task was asked in a run."""
    harness = result.harness
    shots = (harness.get("n-shot") or {}).get(task, 0)
    counts = (harness.get("n-samples") or {}).get(task) or {}
    config = harness.get("config") or {}
    settings: dict[str, Any] = {
        "version": (harness.get("versions") or {}).get(task),
        "few-shot": shots,
        "documents": _documents(counts, config.get("limit")),
        "data": ((result.lowbit.get("data_sha256") or {}).get(task) or "")[:8] or None,
        "lm-eval": harness.get("lm_eval_version"),
        "system instruction": (harness.get("system_instruction_sha") or "")[:8] or None,
        "generation": json.dumps(config["gen_kwargs"], sort_keys=True) if config.get("gen_kwargs") else None,
    }
    seed = str(config.get("fewshot_seed")) if shots else None
    return TaskProtocol(task, _texts(settings), seed)


def model_protocol(result: StoredResult) -> tuple[tuple[str, str], ...]:
    """Return how the model was run, apart from the tasks: number type, context length, prompts' outer form."""
    harness = result.harness
    config = harness.get("config") or {}
    arguments = config.get("model_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    settings: dict[str, Any] = {
        "dtype": str(config.get("model_dtype") or "").removeprefix("torch.") or None,
        "context": harness.get("max_length"),
        "add_bos_token": arguments.get("add_bos_token"),
        "chat template": (harness.get("chat_template_sha") or "")[:8] or None,
        "multiturn": True if harness.get("fewshot_as_multiturn") else None,
        "backend": result.lowbit.get("backend") if result.role == "quantized" else None,
    }
    return _texts(settings)


def recipe_of_checkpoint(result: StoredResult) -> Mapping[str, Any]:
    """Return the part of the recipe that a quantization is made by, without its seed; empty where it is not known."""
    if result.role != "quantized":
        return {}
    recipe = result.lowbit.get("checkpoint_recipe") or result.lowbit.get("recipe") or {}
    trains = recipe.get("reconstruction") is not None or recipe.get("distillation") is not None
    unused = set() if trains else {"training_data"}
    if result.lowbit.get("calibration") is None:
        unused.add("calibration")
    left_out = _NOT_OF_THE_CHECKPOINT | unused
    return {key: value for key, value in recipe.items() if key not in left_out and value is not None}


def parent_key(result: StoredResult) -> str:
    """Return what identifies the parent: the hash of its files, else its name."""
    sha256 = (result.lowbit.get("parent") or {}).get("sha256")
    return str(sha256 or result.model)


def family(result: StoredResult) -> str:
    """Return what is equal for runs that differ in nothing but the seed: parent, recipe, and how the model was run."""
    described = {
        "role": result.role,
        "parent": parent_key(result),
        "method": result.method,
        "recipe": recipe_of_checkpoint(result),
        "run": model_protocol(result),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def _documents(counts: Mapping[str, Any], limit: Any) -> str:
    effective, original = counts.get("effective"), counts.get("original")
    if effective is None:
        return "all" if limit is None else f"limit {limit:g}"
    return f"all {effective}" if effective == original else f"{effective} of {original}"


def _texts(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in settings.items() if value is not None)
