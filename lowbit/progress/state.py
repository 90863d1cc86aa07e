"""What is known of a run at a moment: plain numbers, from which both the live view and plain lines are made."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowbit.contracts import LayerReport
from lowbit.pipeline.resources import resident_bytes

GIGABYTE = 1e9


@dataclass
class Counter:
    """Something that is done piece by piece.

    Args:
        text: What is done.
        total: How many pieces there are; `None` where nobody knows.
        done: How many are done.
        clock: Tells seconds.
    """

    text: str
    total: int | None
    done: int = 0
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _first: int = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._first = self.done

    @property
    def elapsed(self) -> float:
        """Seconds since the first of these pieces was begun."""
        return self.clock() - self._started

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest takes at this pace; `None` before the first piece, at the end, or without a total."""
        done = self.done - self._first
        if self.total is None or done <= 0 or self.done >= self.total:
            return None
        return max(0.0, self.elapsed / done * (self.total - self.done))

    @property
    def count(self) -> str:
        """How many of how many."""
        return f"{self.done}" if self.total is None else f"{self.done} of {self.total}"


class Memory:
    """The process's memory now, and the most that was seen."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.device_now = self.device_peak = 0

    def look(self) -> None:
        """Measure again."""
        self.now = resident_bytes()
        self.peak = max(self.peak, self.now)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            self.device_now = torch.cuda.memory_allocated()
            self.device_peak = max(self.device_peak, torch.cuda.max_memory_allocated())

    def __str__(self) -> str:
        device = f", GPU {_size(self.device_now)} (peak {_size(self.device_peak)})" if self.device_peak else ""
        return f"memory {_size(self.now)} (peak {_size(self.peak)}){device}"


@dataclass
class RunState:
    """A run of several methods, as far as it has come.

    Args:
        recipes: The recipes in their order, as plain values; they say which method of how many is at work.
        model: Name of the model.
        method: Name of the method at work.
        number: Its position, from 1; 0 where it is none of the recipes.
        blocks: The decoder blocks.
        layers: The layers of the block at work.
        training: The steps of the training at work.
        tokens: The batches of generated training text.
        evaluation: The requests of the evaluation at work.
        reports: The layers of the last block.
        block: Position of the last block, from 0.
    """

    recipes: Sequence[Mapping[str, Any]] = ()
    model: str = ""
    method: str = ""
    number: int = 0
    blocks: Counter | None = None
    layers: Counter | None = None
    training: Counter | None = None
    tokens: Counter | None = None
    evaluation: Counter | None = None
    reports: tuple[LayerReport, ...] = ()
    block: int = 0
    memory: Memory = field(default_factory=Memory)

    @property
    def counters(self) -> list[Counter]:
        """What is being counted, from the whole to its parts."""
        return [part for part in (self.tokens, self.blocks, self.layers, self.training, self.evaluation) if part]

    @property
    def title(self) -> str:
        """The method, and which of how many it is."""
        of = f" ({self.number} of {len(self.recipes)})" if self.number and len(self.recipes) > 1 else ""
        return f"{self.method}{of}"

    def at_work(self, recipe: Mapping[str, Any], method: str | None = None) -> None:
        """Note whose turn it is.

        Args:
            recipe: The recipe at work, as plain values.
            method: What to call it in place of the recipe's method.
        """
        self.model = str((recipe.get("model") or {}).get("path") or "embedded").rstrip("/").rpartition("/")[2]
        self.method = method or str(recipe["method"])
        found = [position for position, known in enumerate(self.recipes, 1) if known == recipe]
        self.number = found[0] if found and method is None else 0

    def clear(self) -> None:
        """Forget what was being counted."""
        self.blocks = self.layers = self.training = self.tokens = self.evaluation = None
        self.reports = ()


def duration(seconds: float) -> str:
    """Return seconds as `4.2 s`, `3:05` or `2:03:05`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def errors_of(reports: Sequence[LayerReport]) -> str:
    """Return mean and largest relative error of a block's layers."""
    if not reports:
        return "no layer quantized"
    worst = max(reports, key=lambda report: report.relative_error)
    mean = sum(report.relative_error for report in reports) / len(reports)
    return f"error {mean:.4f} (largest {worst.relative_error:.4f}, {short_name(worst.name)})"


def short_name(name: str) -> str:
    """Return a layer's name within its block: `self_attn.q_proj`."""
    parts = name.split(".")
    after = [position for position, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[after[0] + 1 :]) if after and after[0] + 1 < len(parts) else name


def _size(number: int) -> str:
    return f"{number / GIGABYTE:.2f} GB" if number >= GIGABYTE else f"{number / 1e6:.0f} MB"
