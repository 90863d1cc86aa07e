"""Results for reports, made from the record that a real run leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
START = datetime(2026, 11, 1, tzinfo=UTC)


def harness(perplexity: float, accuracy: float, limit: int | None = None, context: int = 256) -> dict[str, Any]:
    """Return lm-eval's part of a result."""
    effective = limit or 500
    return {
        "results": {
            "text": {"alias": "text", "word_perplexity,none": perplexity, "word_perplexity_stderr,none": "N/A"},
            "choice": {"alias": "choice", "acc,none": accuracy, "acc_stderr,none": 0.01},
            "quiz": {"alias": "quiz", "acc,none": accuracy / 2, "acc_stderr,none": 0.02},
        },
        "versions": {"text": 1.0, "choice": 1.0, "quiz": 1.0},
        "n-shot": {"text": 0, "choice": 0, "quiz": 0},
        "n-samples": {task: {"original": 500, "effective": effective} for task in ("text", "choice", "quiz")},
        "higher_is_better": {"text": {"word_perplexity": False}, "choice": {"acc": True}, "quiz": {"acc": True}},
        "config": {"model_dtype": "torch.float32", "limit": limit, "model_args": {}},
        "max_length": context,
        "lm_eval_version": "0.4.13",
        "model_name": "folder/alone",
    }


def layers(blocks: int = 2, planes: bool = True) -> list[dict[str, Any]]:
    """Return the reports of layers."""
    return [
        {
            "name": f"model.layers.{block}.{kind}",
            "relative_error": 0.1 + 0.01 * block + 0.001 * place,
            "nominal_bits": 2.0,
            "weights": 1024,
            "diagnostics": {"plane1_density": 0.3 + 0.01 * place, "sparsity": 0.5} if planes else {},
            "untrained": {"plane1_density": 0.4, "sparsity": 0.5} if planes else {},
        }
        for block in range(blocks)
        for place, kind in enumerate(KINDS)
    ]


def record(method: str, model: str, seed: int = 0, trained: bool = False, planes: bool = True) -> dict[str, Any]:
    """Return lowbit's part of a quantized run."""
    training = {
        "distillation": {"losses": [3.0 - 0.001 * n for n in range(700)], "held_out": [[0, 3.0], [700, 2.4]]},
        "reconstruction": [{"losses": [0.5, 0.3, 0.2]}, {"losses": [0.6, 0.5]}],
    }
    return {
        "role": "quantized",
        "method": method,
        "seed": seed,
        "recipe": {"method": method, "seed": seed, "quantizer": {"bits": 2}},
        "recipe_sha256": "ab" * 32,
        "parent": {"name": model, "sha256": f"{model}-sha"},
        "bits": {
            "nominal_bits": 2.0,
            "quantized_bits": 2.5,
            "whole_file_bits": 4.4 + 0.001 * seed,
            "parameters": 2_750_000,
            "file_bytes": 1_540_000 + seed,
            "items": {"planes": 590_000, "scales": 147_000, "unquantized: embeddings and head": 786_000},
        },
        "cost": {"seconds": 12.5, "peak_memory_bytes": 7e8},
        "versions": {"lowbit": "0.1.0", "torch": "2.13.0"},
        "plugins": {method: "0.1.0"},
        "recovery": {"text": {"word_perplexity,none": {"recovery_percent": 91.25}}},
        "layers": layers(planes=planes),
        "training": training if trained else None,
    }


def parent(model: str) -> dict[str, Any]:
    """Return lowbit's part of a parent's run."""
    bits = {"nominal_bits": 16.0, "quantized_bits": 16.0, "whole_file_bits": 16.01, "file_bytes": 5_500_000}
    return {"role": "parent", "method": "rtn", "parent": {"name": model, "sha256": f"{model}-sha"}, "bits": bits}


def write(folder: Path, number: int, harness: Mapping[str, Any], lowbit: Mapping[str, Any] | None) -> Path:
    """Write one result as a run does, an hour after the one with the number before."""
    date = (START + timedelta(hours=number)).strftime("%Y-%m-%dT%H-%M-%S.%f")
    path = folder / f"run{number}" / f"results_{date}+00-00.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**harness, **({} if lowbit is None else {"lowbit": lowbit})}), encoding="utf-8")
    return path


def write_mixed(folder: Path) -> None:
    """Write a parent, a trained run, one without planes, one of another protocol, lm-eval's own, and a broken file."""
    write(folder, 0, harness(10.0, 0.8), parent("small"))
    write(folder, 1, harness(12.0, 0.7), record("planes", "small", trained=True))
    write(folder, 2, harness(15.0, 0.6), record("round", "small", planes=False))
    write(folder, 3, harness(9.0, 0.9, limit=20, context=128), record("round", "small", seed=1, planes=False))
    write(folder, 4, harness(11.0, 0.75), None)
    (folder / "broken").mkdir()
    (folder / "broken" / "results_2026-11-02T00-00-00.000000+00-00.json").write_text('{"results": {', encoding="utf-8")
