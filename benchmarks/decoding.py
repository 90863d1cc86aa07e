"""Measures greedy decoding of a packed model beside its dense form: tokens a second, peak memory, and where time goes.

    python benchmarks/decoding.py FOLDER                          # hidden size 2048, 8 blocks, random weights
    python benchmarks/decoding.py FOLDER --layers 4 --dtypes float32 --threads 2 --markdown

FOLDER receives a LLaMA-shaped parent of random weights and its checkpoint, both kept for the next run. All variants are
loaded in one process and decode in turn, run after run, one sequence at a time; a run is a prompt and then one token
after the other. Peak memory is that of a process of its own for each variant, which loads it and decodes a few tokens:
anonymous resident memory above what the process holds after its imports. The profile is a run of its own, since timing
every layer takes time itself. Embeddings and output head are not quantized.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import click
import torch
import transformers
from decoding_report import Outcome, to_markdown
from kernels_timing import Times, host_facts
from quantization_memory import SHAPES, write_parent
from torch import Tensor, nn

import lowbit
from lowbit.durable import write_json
from lowbit.errors import LowbitError
from lowbit.modeling.surgery import packed_modules
from lowbit.pipeline.identity import package_versions, plugin_versions
from lowbit.pipeline.resources import PeakMemory
from lowbit.recipe.model import Backend, Dtype
from lowbit.registry import registry

PARTS = {"self_attn": "attention projections", "mlp": "feed-forward projections", "lm_head": "output head"}
REST = "everything else"
MEMORY_TOKENS = 4


@dataclass(frozen=True)
class Variant:
    """A way to run the checkpoint.

    Args:
        backend: `packed` or `dense`.
        dtype: Of everything that is not quantized, and of activations.
    """

    backend: Backend
    dtype: Dtype

    def __str__(self) -> str:
        """Return how tables name it."""
        return f"{self.backend} {self.dtype}"


def variants_of(dtypes: str) -> list[Variant]:
    """Return both backends in each of the dtypes, joined by commas.

    Raises:
        LowbitError: One is no dtype.
    """
    kinds = get_args(Dtype)
    if unknown := [name for name in dtypes.split(",") if name not in kinds]:
        raise LowbitError(f"dtype {unknown[0]!r} is unknown; it is one of {', '.join(kinds)}")
    return [Variant(backend, kind) for kind in kinds if kind in dtypes.split(",") for backend in get_args(Backend)]


def make_checkpoint(folder: Path, shape: dict[str, int], method: str, seed: int) -> Path:
    """Return the checkpoint of a random parent, made if it is absent."""
    name = f"{shape['hidden_size']}x{shape['num_hidden_layers']}-{seed}"
    parent, checkpoint = folder / f"parent-{name}", folder / f"{method}-{name}"
    if not (parent / "config.json").is_file():
        write_parent(parent, shape, seed)
    lowbit.quantize(str(parent), method, checkpoint, seed=seed)
    return checkpoint


def load(checkpoint: Path, variant: Variant) -> Any:
    """Load a variant."""
    return lowbit.load(checkpoint, backend=variant.backend, dtype=variant.dtype)


def decode(model: Any, prompt: Tensor, tokens: int) -> tuple[float, list[float], list[int]]:
    """Decode greedily.

    Args:
        model: A causal language model.
        prompt: int64 [1, length].
        tokens: How many to decode.

    Returns:
        Seconds of the prompt, seconds of each token, and the tokens.
    """
    started = time.perf_counter()
    output = model(prompt, use_cache=True)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    prompt_seconds = time.perf_counter() - started
    seconds, found = [], [int(token)]
    for _ in range(tokens):
        started = time.perf_counter()
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        seconds.append(time.perf_counter() - started)
        found.append(int(token))
    return prompt_seconds, seconds, found


def part_of(name: str) -> str:
    """Return the part of a model that a linear layer belongs to, by its name."""
    return next((part for key, part in PARTS.items() if key in name.split(".")), REST)


@contextmanager
def timed_parts(model: nn.Module) -> Iterator[dict[str, float]]:
    """Add up the seconds of all linear layers by part while the context is open."""
    seconds = dict.fromkeys([*PARTS.values(), REST], 0.0)
    handles = []
    packed = set(packed_modules(model))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or module in packed:
            handles += _hooked(module, part_of(name), seconds)
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _hooked(module: nn.Module, part: str, seconds: dict[str, float]) -> list[Any]:
    started = [0.0]

    def before(*_: Any) -> None:
        started[0] = time.perf_counter()

    def after(*_: Any) -> None:
        seconds[part] += time.perf_counter() - started[0]

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def profile(model: Any, prompt: Tensor, tokens: int) -> dict[str, float]:
    """Return seconds a token by part of the model, the prompt left out."""
    output = model(prompt, use_cache=True)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    with timed_parts(model) as seconds:
        started = time.perf_counter()
        for _ in range(tokens):
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        total = time.perf_counter() - started
    seconds[REST] += total - sum(seconds.values())
    return {part: value / tokens for part, value in seconds.items()}


def measure(
    checkpoint: Path,
    variants: Sequence[Variant],
    prompt_tokens: int,
    tokens: int,
    repeats: int,
    threads: int,
    seed: int,
) -> list[Outcome]:
    """Decode with all variants in turn, and measure the memory of each in a process of its own."""
    peaks = [peak_elsewhere(checkpoint, variant, prompt_tokens, threads, seed) for variant in variants]
    models = [load(checkpoint, variant) for variant in variants]
    prompt = random_prompt(models[0].config.vocab_size, prompt_tokens, seed)
    for model in models:
        decode(model, prompt, 2)
    runs: list[list[tuple[float, list[float], list[int]]]] = [[] for _ in variants]
    for number in range(repeats):
        for index in range(len(variants)):
            index = (index + number) % len(variants)
            runs[index].append(decode(models[index], prompt, tokens))
    first = runs[0][0][2]
    outcomes = []
    for variant, model, found, peak in zip(variants, models, runs, peaks, strict=True):
        outcomes.append(
            Outcome(
                variant=str(variant),
                kernels=tuple(sorted({str(module.chosen_kernel) for module in packed_modules(model)})),
                token=Times.of([second for _, seconds, _ in found for second in seconds]),
                runs=tuple(tokens / sum(seconds) for _, seconds, _ in found),
                prompt=tuple(seconds for seconds, _, _ in found),
                peak_bytes=peak,
                weight_bytes=weight_bytes(model),
                same_tokens=statistics.mean(a == b for a, b in zip(first, found[0][2], strict=True)),
                profile=profile(model, prompt, tokens),
            )
        )
    return outcomes


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values())


def random_prompt(vocabulary: int, length: int, seed: int) -> Tensor:
    """Return token ids, int64 [1, length]."""
    return torch.randint(3, vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))


def peak_elsewhere(checkpoint: Path, variant: Variant, prompt_tokens: int, threads: int, seed: int) -> int:
    """Return the most memory that a fresh process holds which loads the variant and decodes.

    Raises:
        LowbitError: The process failed.
    """
    order = {"checkpoint": str(checkpoint), "variant": asdict(variant), "prompt_tokens": prompt_tokens, "seed": seed}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(__file__).resolve()), str(checkpoint), "--peak", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise LowbitError(f"measuring the memory of {variant} failed: {done.stderr.strip()[-300:]}")
    return int(done.stdout.split()[-1])


def peak_here(checkpoint: str, variant: dict[str, Any], prompt_tokens: int, seed: int) -> int:
    """Return the most memory that loading and decoding takes above what the process holds now."""
    registry()
    with PeakMemory() as memory:
        model = load(Path(checkpoint), Variant(**variant))
        decode(model, random_prompt(model.config.vocab_size, prompt_tokens, seed), MEMORY_TOKENS)
    return memory.peak_bytes - memory.start_bytes


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--layers", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="1b", show_default=True)
@click.option("--method", default="dbllm-ptq", show_default=True)
@click.option("--dtypes", default="float32,bfloat16", show_default=True)
@click.option("--prompt_tokens", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=lambda: os.cpu_count() or 1, help="Default: all cores.")
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("decoding.json"))
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown and not as JSON.")
@click.option("--peak", hidden=True, help="Print the peak memory of one variant in this process.")
def main(folder: Path, layers: int, shape: str, method: str, dtypes: str, markdown: bool, **rest: Any) -> None:
    """Make the checkpoint if it is absent, decode with every variant, and print the numbers."""
    transformers.utils.logging.set_verbosity_error()
    if rest["peak"] is not None:
        with torch.inference_mode():
            click.echo(peak_here(**json.loads(rest["peak"])))
        return
    torch.set_num_threads(rest["threads"])
    sizes = {**SHAPES[shape], "num_hidden_layers": layers}
    checkpoint = make_checkpoint(folder, sizes, method, rest["seed"])
    variants = variants_of(dtypes)
    settings = {key: rest[key] for key in ("prompt_tokens", "tokens", "repeats", "threads", "seed")}
    with torch.inference_mode():
        outcomes = measure(checkpoint, variants, **settings)
    record = {
        "versions": package_versions(),
        "plugins": plugin_versions(registry().plugins),
        "host": host_facts(torch.device("cpu")),
        "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{"method": method, "shape": sizes, **settings},
        "outcomes": [asdict(one) for one in outcomes],
    }
    write_json(rest["output"], record)
    click.echo(to_markdown(outcomes) if markdown else json.dumps(record, indent=2))


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (LowbitError, click.ClickException) as error:
        sys.exit(f"error: {error}")
