"""Makes results as `bench` and lm-eval write them, for tests that read directories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lowbit.results.record import write_result

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def recipe(method: str, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Return what a record says of its recipe."""
    return {
        "version": 1,
        "method": method,
        "seed": seed,
        "model": {"path": None},
        "calibration": {"source": None, "n_samples": None},
        "quantizer": {"name": method, "group_size": 64, **options},
        "packer": {"name": "plain"},
        "training_data": {"source": "auto"},
        "reconstruction": None,
        "distillation": None,
        "eval": {"tasks": ["piqa"]},
    }


def store_run(
    folder: Path,
    method: str,
    values: Mapping[str, float],
    *,
    seed: int = 0,
    minute: int = 0,
    model: str = "llama",
    bits: float = 2.0,
    scores: Mapping[str, Sequence[Any]] | None = None,
    prompts: str = "p",
    options: Mapping[str, Any] | None = None,
    recovery: float | None = None,
    harness: Mapping[str, Any] | None = None,
) -> Path:
    """Write one result.

    Args:
        folder: The results directory.
        method: A method; `parent` for the parent.
        values: Metric values by `TASK.METRIC`.
        seed: The recipe's seed.
        minute: When it ended.
        model: The parent's name.
        bits: Bits a weight.
        scores: What is logged of each document, by `TASK.METRIC`.
        prompts: What prompts' hashes begin with.
        options: The quantizer's options.
        recovery: Percent, of every metric.
        harness: Replaces parts of the harness's sections.
    """
    results: dict[str, dict[str, Any]] = {}
    directions: dict[str, dict[str, bool]] = {}
    recovered: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        task, _, metric = key.rpartition(".")
        results.setdefault(task, {"alias": task})[f"{metric},none"] = value
        directions.setdefault(task, {})[metric] = "perplexity" not in metric
        recovered.setdefault(task, {})[f"{metric},none"] = {"recovery_percent": recovery}
    content = {
        "results": results,
        "higher_is_better": directions,
        "versions": dict.fromkeys(results, 1.0),
        "n-shot": dict.fromkeys(results, 0),
        "n-samples": {task: {"original": 100, "effective": 100} for task in results},
        "config": {"model_dtype": "torch.float32", "limit": None, "fewshot_seed": 1234, "model_args": {}},
        "lm_eval_version": "0.4.13",
        "max_length": 256,
        "date": START.timestamp() + minute,
        "samples": _samples(scores or {}, prompts),
        **(harness or {}),
    }
    common = {
        "parent": {"name": model, "sha256": f"sha-of-{model}"},
        "data_sha256": dict.fromkeys(results, "d" * 64),
        "bits": {"nominal_bits": bits, "quantized_bits": bits, "whole_file_bits": bits, "file_bytes": 1000},
    }
    made = recipe(method, seed, **(options or {}))
    ours: dict[str, Any] = {"role": "parent", "method": "gptq", **common}
    if method != "parent":
        ours = {"role": "quantized", "method": method, **common, "backend": "dense", "seed": seed, "recipe": made}
        ours |= {"calibration": None, "recipe_sha256": f"{method}-{seed}"}
        ours |= {} if recovery is None else {"recovery": recovered}
    name = model if method == "parent" else f"{model}__{method}"
    return write_result(folder, name, content, ours, START + timedelta(minutes=minute))


def _samples(scores: Mapping[str, Sequence[Any]], prompts: str) -> dict[str, list[dict[str, Any]]]:
    samples: dict[str, list[dict[str, Any]]] = {}
    for key, logged in scores.items():
        task, _, metric = key.rpartition(".")
        entries = samples.setdefault(task, [])
        for number, value in enumerate(logged):
            if len(entries) <= number:
                hashes = {"doc_hash": f"{task}-{number}", "prompt_hash": f"{prompts}-{number}", "target_hash": "t"}
                entries.append({"doc_id": number, "filter": "none", **hashes})
            entries[number][metric] = value
    return samples


def word_perplexity(logged: Sequence[Sequence[float]]) -> float:
    """Return what lm-eval makes of log-likelihoods and numbers of words."""
    return math.exp(-sum(pair[0] for pair in logged) / sum(pair[1] for pair in logged))
