"""What must agree before two numbers may stand in one column or be averaged: protocol, recipe, parent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.results.store import StoredResult
from lowbit.results.task_groups import members_of

_NOT_OF_THE_CHECKPOINT = frozenset(
    {"seed", "eval", "backend", "output_path", "model", "preset", "max_shard_size", "resources"}
)
"""Keys of a recipe that change neither how weights are quantized nor what the result is one of several seeds of."""
_OF_A_MEMBER = frozenset({"version", "few-shot", "documents", "prompt", "subtasks"})
"""What members of a group may be asked in different ways; the other settings are those of the whole run."""
_PROMPT_KEYS = (
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "fewshot_split",
    "generation_kwargs",
    "filter_list",
)
"""What a task's prompts, the answers it expects and their reading are made by."""


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
    """Return how a task was asked in a run; a group was asked as its members were."""
    return _group_protocol(result, task, frozenset())


def _group_protocol(result: StoredResult, task: str, above: frozenset[str]) -> TaskProtocol:
    """Return a task's protocol, where the groups above it are not looked into again."""
    harness = result.harness
    config = harness.get("config") or {}
    members = [member for member in members_of(harness, task) if member not in above]
    within = {member: _group_protocol(result, member, above | {task}) for member in members}
    own = _asked_of_members(within) if within else _asked(result, task)
    settings: dict[str, Any] = {
        "version": (harness.get("versions") or {}).get(task),
        **own,
        "lm-eval": harness.get("lm_eval_version"),
        "system instruction": (harness.get("system_instruction_sha") or "")[:8] or None,
        "generation": json.dumps(config["gen_kwargs"], sort_keys=True) if config.get("gen_kwargs") else None,
    }
    if within:
        seeds = sorted({one.fewshot_seed for one in within.values() if one.fewshot_seed is not None})
        return TaskProtocol(task, _texts(settings), ", ".join(seeds) or None)
    return TaskProtocol(task, _texts(settings), str(config.get("fewshot_seed")) if own["few-shot"] else None)


def _asked(result: StoredResult, task: str) -> dict[str, Any]:
    """Return what is said of one task: examples, documents, prompt."""
    harness = result.harness
    counts = (harness.get("n-samples") or {}).get(task) or {}
    hashes = result.lowbit.get("data_sha256") or {}
    # A token perplexity's name carries the context length, which its text does not depend on.
    data = hashes.get(task) or hashes.get(task.partition("@")[0])
    return {
        "few-shot": (harness.get("n-shot") or {}).get(task, 0),
        "documents": _documents(counts, (harness.get("config") or {}).get("limit")),
        "prompt": _prompt((harness.get("configs") or {}).get(task) or {}),
        "data": (data or "")[:8] or None,
    }


def _asked_of_members(members: Mapping[str, TaskProtocol]) -> dict[str, Any]:
    """Return the same of a group; its data apart from the rest, as lm-eval's own files do not say theirs."""
    settings = {member: dict(protocol.settings) for member, protocol in members.items()}
    rest = [(member, [pair for pair in own.items() if pair[0] in _OF_A_MEMBER]) for member, own in settings.items()]
    data = [(member, own["data"]) for member, own in settings.items() if "data" in own]
    return {
        "few-shot": ", ".join(sorted({own["few-shot"] for own in settings.values()})),
        "documents": "all" if all(own["documents"].startswith("all") for own in settings.values()) else "a part",
        "subtasks": _short_hash(rest),
        "data": _short_hash(data) if len(data) == len(settings) else None,
    }


def _prompt(config: Mapping[str, Any]) -> str | None:
    """Return a hash of what a task makes its prompts and answers with; `None` where nothing is said of it."""
    said = {key: config[key] for key in _PROMPT_KEYS if config.get(key) is not None}
    if not said:
        return None
    # lm-eval writes a function's source, or what Python calls it: then with its place in memory, which says nothing.
    return _short_hash(re.sub(r"\b0x[0-9a-fA-F]{6,}", "0x", json.dumps(said, sort_keys=True, default=str)))


def _short_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


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
