"""The protocols through which the quantization engine is given storage and observers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from lowbit.contracts.events import QuantizedLayer
from lowbit.contracts.formats import QuantizedWeight
from lowbit.contracts.training import TrainingStep


@dataclass(frozen=True)
class LayerReport:
    """What is worth knowing of one quantized weight.

    Args:
        name: The weight target's name.
        weights: Number of weights.
        nominal_bits: Bits a weight as the paper counts.
        relative_error: ||W - dequantize()||_F^2 / ||W||_F^2.
        calibration_tokens: Tokens its statistics came from; `None` if the quantizer needs none.
        diagnostics: Numbers that plugins add.
        notes: What the quantizer met and worked around, such as a Hessian that was not positive definite.
        untrained: The same numbers of what training started from; empty for a weight that was not trained.
    """

    name: str
    weights: int
    nominal_bits: float
    relative_error: float
    calibration_tokens: int | None
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    untrained: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizedBlock:
    """One finished decoder block.

    Args:
        index: Position of the block, from 0.
        weights: Quantized weights by target name.
        fused: Names of those weights that are one expert's part of a fused parameter.
        untouched: The block's other tensors (norms, biases, skipped layers) by their name in the model.
        reports: One report a quantized weight.
        seconds: Wall time spent on the block.
        state: What training that goes on from here starts with.
        training: Plain JSON values about the block's training; `None` if it was not trained.
    """

    index: int
    weights: Mapping[str, QuantizedWeight]
    fused: frozenset[str]
    untouched: Mapping[str, Tensor]
    reports: tuple[LayerReport, ...]
    seconds: float
    state: Mapping[str, Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None


Stream = Literal["quantized", "reference"]
"""Activations of the model that is being quantized, or those that its blocks are trained to produce."""


class ActivationWriter(Protocol):
    """Receives the activations that enter a block, one sample after the other."""

    def append(self, hidden: Tensor) -> None:
        """Add one sample, [1, length, hidden size]."""


class BlockStore(Protocol):
    """Durable storage of a run in progress; what it committed survives a kill at any moment."""

    def finished(self) -> int:
        """Return how many leading blocks are committed."""

    def activations(self, index: int, stream: Stream = "quantized", part: range | None = None) -> Iterator[Tensor]:
        """Yield stored samples [1, length, hidden size] that enter block `index`, one at a time; all without `part`."""

    def batch(self, index: int, samples: Sequence[int], stream: Stream = "quantized") -> Tensor:
        """Return some of the samples that enter block `index`, [n, length, hidden size]."""

    def has_activations(self, index: int, stream: Stream = "quantized") -> bool:
        """Say whether the complete input of block `index` is stored."""

    def write_activations(
        self, index: int, stream: Stream = "quantized", part: range | None = None
    ) -> AbstractContextManager[ActivationWriter]:
        """Open the input of block `index` for writing; it becomes visible, whole, when the context closes.

        Several processes write a part each, consecutive samples; without `part` it is all of them.
        """

    def commit(self, block: QuantizedBlock) -> None:
        """Store a finished block atomically and drop the activations that entered it."""


class RunEvents(Protocol):
    """Observes a run; every method may do nothing."""

    def run_started(self, blocks: int, finished: int) -> None:
        """A run of `blocks` decoder blocks starts, of which `finished` were committed before."""

    def tokens_generated(self, finished: int, batches: int) -> None:
        """So many of the batches of training tokens that the parent writes itself are there."""

    def layer_quantized(self, layer: QuantizedLayer) -> None:
        """A weight of a block was quantized; training and storing of the block are still to come."""

    def block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        """A block was committed."""

    def training_step(self, step: TrainingStep) -> None:
        """An optimizer step of a training was taken."""

    def run_ended(self) -> None:
        """The run ended, well or not."""
