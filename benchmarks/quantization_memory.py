"""Measures the peak memory of quantizing a LLaMA-shaped model of random weights, block by block.

    python benchmarks/quantization_memory.py FOLDER                # 1.1 billion parameters, without calibration
    python benchmarks/quantization_memory.py FOLDER --calibrated   # with Hessians from 32 x 512 random tokens
    python benchmarks/quantization_memory.py FOLDER --trained      # with block-wise training on 4 x 256 random tokens

FOLDER receives the model (kept for the next run) and the checkpoint (made anew). The numbers are anonymous resident
memory above what the process holds after its imports; memory-mapped weight files do not count.
"""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from lowbit.models.streamed import build_skeleton
from lowbit.pipeline.identity import package_versions
from lowbit.pipeline.make_checkpoint import journal_path
from lowbit.pipeline.quantize import HookEvents, cost_path, quantize_to
from lowbit.pipeline.resources import resident_bytes
from lowbit.recipe import resolve_recipe
from lowbit.registry import registry

PLUGIN = Path(__file__).with_name("hessian_rounding.py")
SHAPES: dict[str, dict[str, int]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 1000,
    },
}


def write_parent(folder: Path, shape: dict[str, int], seed: int) -> None:
    """Write a float16 model of random weights; one block is in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**shape, max_position_embeddings=2048, tie_word_embeddings=False, dtype="float16")
    config.architectures = ["LlamaForCausalLM"]
    generator = torch.Generator().manual_seed(seed)
    shards: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, parameter in build_skeleton(config).named_parameters():
        parts = name.split(".")
        shard = f"model-{int(parts[2]) + 1:05d}.safetensors" if "layers" in parts else "model-00000.safetensors"
        shards.setdefault(shard, []).append((name, parameter.shape))
    total = 0
    for shard, members in shards.items():
        tensors = {name: _random(size, generator) for name, size in members}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {name: shard for shard, members in shards.items() for name, _ in members}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _tokenizer(shape["vocab_size"]).save_pretrained(folder)
    # Written last: its presence says that the model is whole.
    config.save_pretrained(folder)


def _random(size: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.float16)
    return (torch.randn(size, generator=generator) * 0.02).half()


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


RECONSTRUCTION = {"steps": 2, "batch_size": 2}


def measure(
    folder: Path, shape: dict[str, int], seed: int, tokens: tuple[int, int] | None, trained: bool = False
) -> dict[str, Any]:
    """Quantize the model in `folder`/parent and return what it took.

    Args:
        folder: Holds the parent; receives the checkpoint.
        shape: The model's shape, for the record.
        seed: Decides the calibration tokens.
        tokens: Calibration samples and their length, or `None` for none.
        trained: Whether the tokens are there for block-wise reconstruction, a few steps a block; memory does not
            depend on how many.
    """
    flags: dict[str, Any] = {"model": {"path": str(folder / "parent")}, "seed": seed}
    method = "dbllm-ptq"
    if trained:
        flags |= {"reconstruction": RECONSTRUCTION, "training_data": {"source": "calibration"}}
    if tokens is not None:
        if not trained:
            registry().load(str(PLUGIN))
            method = "hessian-rounding"
        file = folder / "tokens.npz"
        drawn = np.random.default_rng(seed).integers(3, shape["vocab_size"], tokens, dtype=np.int64)
        np.savez(file, tokens=drawn)
        flags["calibration"] = {"source": str(file), "n_samples": tokens[0], "seq_len": tokens[1]}
    recipe = resolve_recipe(registry(), method, flags=flags)
    output = folder / f"checkpoint-{method}"
    for leftover in (output, journal_path(output)):
        shutil.rmtree(leftover, ignore_errors=True)
    cost_path(output).unlink(missing_ok=True)
    imported = resident_bytes()
    outcome = quantize_to(recipe, output, HookEvents(recipe))
    peak = outcome.cost["peak_memory_bytes"]
    return {
        "method": method,
        "calibration_tokens": tokens,
        "trained": trained,
        "shape": shape,
        "parameters": outcome.bits.parameters,
        "quantized_weights": outcome.bits.quantized_weights,
        "block_weights": outcome.bits.quantized_weights // shape["num_hidden_layers"],
        "quantized_bits": outcome.bits.quantized_bits,
        "imported_bytes": imported,
        "peak_bytes": peak,
        "peak_above_imports_gib": (peak - imported) / 2**30,
        "seconds": outcome.cost["seconds"],
        "threads": torch.get_num_threads(),
        "seed": seed,
        "versions": package_versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="1b", show_default=True)
@click.option("--calibrated", is_flag=True, help="Collect Hessians from random tokens.")
@click.option("--trained", is_flag=True, help="Train each block on random tokens, a few steps.")
@click.option("--n_samples", type=int, help="Sequences; none: 32, or 4 with --trained.")
@click.option("--seq_len", type=int, help="Tokens a sequence; none: 512, or 256 with --trained.")
@click.option("--seed", default=0, show_default=True)
def main(
    folder: Path, shape: str, calibrated: bool, trained: bool, n_samples: int | None, seq_len: int | None, seed: int
) -> None:
    """Write the parent if it is absent, quantize it, and print the numbers as JSON."""
    transformers.utils.logging.set_verbosity_error()
    if not (folder / "parent" / "config.json").is_file():
        write_parent(folder / "parent", SHAPES[shape], seed)
    usual = (4, 256) if trained else (32, 512)
    tokens = (n_samples or usual[0], seq_len or usual[1]) if calibrated or trained else None
    click.echo(json.dumps(measure(folder, SHAPES[shape], seed, tokens, trained), indent=2))


if __name__ == "__main__":
    main()
