"""One measurement of `cost_curves.py`, in a process of its own: a quantization, its forecast, or a bench.

python benchmarks/cost_curves_worker.py JOB.json    # prints one line of JSON
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quantization_memory import write_parent
from transformers import LlamaConfig

from lowbit.embedded import DEFAULT_TASKS, task_configs
from lowbit.models.streamed import build_skeleton
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.forecast import forecast
from lowbit.pipeline.make_checkpoint import journal_path
from lowbit.pipeline.quantize import HookEvents, cost_path, quantize_to
from lowbit.pipeline.resources import PeakMemory
from lowbit.recipe import Recipe, resolve_recipe
from lowbit.registry import registry

HEAD = 64
"""Numbers an attention head."""


def model_of(point: dict[str, int], folder: Path) -> Path:
    """Return a LLaMA-shaped model of random numbers, written at the first call."""
    hidden = point["hidden"]
    shape = {
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4 // HEAD * HEAD,
        "num_hidden_layers": point["layers"],
        "num_attention_heads": hidden // HEAD,
        "num_key_value_heads": hidden // HEAD,
        "vocab_size": point["vocabulary"],
    }
    parent = folder / f"model-{'-'.join(str(value) for value in shape.values())}"
    if not (parent / "config.json").is_file():
        write_parent(parent, shape, 0)
    return parent


def recipe_of(job: dict[str, Any], folder: Path) -> Recipe:
    """Return the recipe of a quantization, and write its model and tokens if they are not there."""
    point = job["point"]
    tokens = folder / f"tokens-{point['samples']}-{point['length']}-{point['vocabulary']}.npz"
    if not tokens.is_file():
        size = (point["samples"], point["length"])
        np.savez(tokens, tokens=np.random.default_rng(0).integers(3, point["vocabulary"], size, dtype=np.int64))
    flags: dict[str, Any] = {
        "model": {"path": str(model_of(point, folder))},
        "calibration": {"source": str(tokens), "n_samples": point["samples"], "seq_len": point["length"]},
    }
    if job["training"] is not None:
        stages = {"reconstruction": None, "distillation": None} | job["training"]
        flags |= {**stages, "training_data": {"source": "calibration"}}
    return resolve_recipe(registry(), job["method"], flags=flags)


def measure(job: dict[str, Any], folder: Path) -> dict[str, float]:
    """Quantize, and return what it took."""
    output = folder / "checkpoint"
    for leftover in (output, journal_path(output)):
        shutil.rmtree(leftover, ignore_errors=True)
    cost_path(output).unlink(missing_ok=True)
    recipe = recipe_of(job, folder)
    outcome = quantize_to(recipe, output, HookEvents(recipe))
    size = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    return {
        "seconds": outcome.cost["seconds"],
        "memory": outcome.cost["peak_memory_above_start_bytes"],
        "checkpoint": size,
    }


def foresee(job: dict[str, Any], folder: Path) -> dict[str, float]:
    """Forecast the same, in a process that did nothing else before, as `--dry_run` does."""
    recipe_of(job, folder)
    found = forecast(recipe_of(job, folder))
    return {
        "seconds": found.seconds,
        "memory": found.peak_memory_bytes,
        "checkpoint": found.checkpoint_bytes,
        "dry_run_seconds": found.dry_run_seconds,
    }


def bench_cells(job: dict[str, Any], folder: Path) -> dict[str, float]:
    """Run a bench of several recipes on the embedded model, the parent's evaluation included."""
    output = folder / "bench"
    shutil.rmtree(output, ignore_errors=True)
    flags = {"eval": {"tasks": DEFAULT_TASKS, "limit": job["limit"]}}
    recipes = [resolve_recipe(registry(), job["method"], flags={**flags, "seed": seed}) for seed in range(job["cells"])]
    started = time.monotonic()
    with PeakMemory() as memory:
        rows = list(bench(recipes, BenchOptions(output_path=output, extra_tasks=task_configs())))
    failed = [row for row in rows if getattr(row, "error", None)]
    if failed or len(rows) != len(recipes) + 1:
        sys.exit(f"the bench failed: {failed}")
    return {"seconds": time.monotonic() - started, "memory": memory.peak_bytes - memory.start_bytes}


def large(job: dict[str, Any], folder: Path) -> dict[str, float]:
    """Forecast a model of real size, whose files have headers and no content: sparse files that take no disk."""
    model = folder / f"sparse-{job['size']}"
    if not (model / "config.json").is_file():
        write_sparse(model, job["shape"])
    samples, length = job["tokens"]
    tokens = folder / f"tokens-{samples}-{length}.npz"
    np.savez(tokens, tokens=np.full((samples, length), 5, dtype=np.int64))
    flags = {"model": {"path": str(model)}, "calibration": {"source": str(tokens)}}
    with PeakMemory() as memory:
        found = forecast(resolve_recipe(registry(), job["method"], flags=flags))
    return {
        "seconds": found.seconds,
        "memory": found.peak_memory_bytes,
        "disk": found.working_disk_bytes,
        "checkpoint": found.checkpoint_bytes,
        "dry_run_seconds": found.dry_run_seconds,
        "dry_run_memory": memory.peak_bytes - memory.start_bytes,
    }


def write_sparse(folder: Path, shape: dict[str, int]) -> None:
    """Write a model folder whose weights are a hole of the right size behind a true header."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**shape, max_position_embeddings=4096, tie_word_embeddings=False, dtype="float16")
    config.architectures = ["LlamaForCausalLM"]
    shards: dict[str, dict[str, Any]] = {}
    ends: dict[str, int] = {}
    for name, parameter in build_skeleton(config).named_parameters():
        parts = name.split(".")
        shard = f"model-{int(parts[2]) + 1 if 'layers' in parts else 0:05d}.safetensors"
        start = ends.get(shard, 0)
        ends[shard] = start + 2 * parameter.numel()
        entry = {"dtype": "F16", "shape": list(parameter.shape), "data_offsets": [start, ends[shard]]}
        shards.setdefault(shard, {"__metadata__": {"format": "pt"}})[name] = entry
    for shard, header in shards.items():
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / shard).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + ends[shard])
    weight_map = {name: shard for shard, header in shards.items() for name in header if name != "__metadata__"}
    index = {"metadata": {"total_size": sum(ends.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(folder)


KINDS = {"measure": measure, "forecast": foresee, "bench": bench_cells, "large": large}


def main() -> None:
    """Do the job that a file describes."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    print(json.dumps(KINDS[job["kind"]](job, Path(sys.argv[1]).parent)))


if __name__ == "__main__":
    main()
