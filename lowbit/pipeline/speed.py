"""Greedy decoding timed: a packed model beside its dense form, one run of each in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

PROMPT, NEW_TOKENS, RUNS = 16, 32, 5


@dataclass(frozen=True)
class DecodingSpeed:
    """How fast a model writes, one sequence at a time.

    Args:
        tokens_per_second: Median over the runs.
        lower: First quartile.
        upper: Third quartile.
        prompt_seconds: Median time of the prompt.
        prompt: Tokens that were given.
        new_tokens: Tokens that each run wrote.
        runs: How many runs there were, after one to warm up.
        model_bytes: Of parameters and buffers; not of what a kernel arranged beside them.
    """

    tokens_per_second: float
    lower: float
    upper: float
    prompt_seconds: float
    prompt: int
    new_tokens: int
    runs: int
    model_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def decoding_speeds(
    models: Mapping[str, Any], prompt: Tensor, new_tokens: int = NEW_TOKENS, runs: int = RUNS
) -> dict[str, DecodingSpeed]:
    """Time greedy decoding of several models in turn, so that a machine's other work disturbs all alike.

    Args:
        models: Causal language models of transformers, by name; on the device that they are to be timed on.
        prompt: Token ids int64 [1, length].
        new_tokens: Tokens to write in each run.
        runs: Runs of each model, after one that is not counted.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(runs + 1):
        for name, model in models.items():
            seconds = _decode(model, prompt, new_tokens)
            if number:
                taken[name].append(seconds)
    return {name: _summary(models[name], times, prompt.shape[1], new_tokens) for name, times in taken.items()}


@torch.inference_mode()
def _decode(model: Any, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Return the seconds of the prompt and of the tokens written after it."""
    tokens, cache = prompt.to(model.device), None
    times = [_now(model)]
    for _ in range(new_tokens + 1):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        tokens = output.logits[:, -1:].argmax(dim=-1)
        times.append(_now(model) if len(times) == 1 else 0.0)
    return times[1] - times[0], _now(model) - times[1]


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _summary(model: Any, times: list[tuple[float, float]], prompt: int, new_tokens: int) -> DecodingSpeed:
    rates = sorted(new_tokens / seconds for _, seconds in times)
    lower, middle, upper = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    held = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return DecodingSpeed(
        tokens_per_second=middle,
        lower=lower,
        upper=upper,
        prompt_seconds=statistics.median(seconds for seconds, _ in times),
        prompt=prompt,
        new_tokens=new_tokens,
        runs=len(times),
        model_bytes=sum(held.values()),
    )
