"""How long a model takes to write sequences, from letting one with a single block of random numbers write some."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lowbit.contracts import GenerationSettings
from lowbit.distillation.generation import generate_batch
from lowbit.models import find_decoder
from lowbit.models.streamed import build_skeleton
from lowbit.pipeline.measuring import Stopwatch
from lowbit.pipeline.trial_model import TrialModel, fill

FIRST_TOKENS = 8


@dataclass
class _BlockTimes:
    """Seconds that a block took, call by call."""

    watch: Stopwatch
    seconds: list[float] = field(default_factory=list)
    _started: float = 0.0

    def start(self, *_: object) -> None:
        """Begin a call."""
        self._started = self.watch.now()

    def stop(self, *_: object) -> None:
        """End it."""
        self.seconds.append(self.watch.now() - self._started)


def generation_seconds(
    model: TrialModel, settings: GenerationSettings, length: int, dtype: torch.dtype, watch: Stopwatch, budget: float
) -> float:
    """Return the seconds that writing all sequences takes.

    A block's time grows with the tokens that are there already: where not all fit the budget, by the line through
    what was seen.

    Args:
        model: Has the shapes.
        settings: How many sequences, and how many at once.
        length: Tokens a sequence.
        dtype: In which the model computes.
        watch: Times.
        budget: Seconds for timing.
    """
    blocks = len(model.decoder.blocks)
    whole = _one_block(model, dtype, watch)
    rows = min(settings.batch_size, settings.n_samples)
    _write(whole, rows, 3, watch)
    pace = _write(whole, rows, min(length, FIRST_TOKENS), watch)[0] / min(length, FIRST_TOKENS)
    tokens = max(min(length, FIRST_TOKENS), min(length, int(budget / pace / 2)))
    total, by_call = _write(whole, rows, tokens, watch)
    rest = max(0.0, total - sum(by_call)) / len(by_call)
    batches = settings.n_samples / rows
    return batches * (blocks * _summed(by_call, length - 1) + rest * (length - 1))


def _one_block(model: TrialModel, dtype: torch.dtype, watch: Stopwatch) -> Any:
    """Return a model of the same shapes with one block."""
    whole: Any = build_skeleton(model.config)
    decoder = find_decoder(whole)
    stack: Any = whole.get_submodule(decoder.name)
    del stack[1:]
    fill(whole)
    return whole.to(watch.device, dtype)


def _write(whole: nn.Module, rows: int, length: int, watch: Stopwatch) -> tuple[float, list[float]]:
    """Let a model write sequences, and return the seconds of all and of its block's calls."""
    times = _BlockTimes(watch)
    block = find_decoder(whole).blocks[0]
    handles = [block.register_forward_pre_hook(times.start), block.register_forward_hook(times.stop)]
    generator = torch.Generator().manual_seed(0)
    first, greedy = torch.zeros(rows, 1, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    try:
        total = watch.once(lambda: generate_batch(whole, first, greedy, length, 1.0, generator))
    finally:
        for handle in handles:
            handle.remove()
    return total, times.seconds


def _summed(seconds: list[float], calls: int) -> float:
    """Return what more calls take, by the line through the means of the first and the second half of some."""
    half = len(seconds) // 2
    if calls <= len(seconds) or not half:
        return sum(seconds) / len(seconds) * calls
    early, late = sum(seconds[:half]) / half, sum(seconds[-half:]) / half
    slope = max(0.0, (late - early) / (len(seconds) - half))
    middle = (len(seconds) - 1) / 2
    return calls * (sum(seconds) / len(seconds) + slope * ((calls - 1) / 2 - middle))
