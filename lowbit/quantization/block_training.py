"""What the engine hands to whoever trains a block, and what it takes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lowbit.contracts import QuantizedWeight, WeightQuantizer
from lowbit.models import WeightTarget


@dataclass(frozen=True)
class TrainableWeight:
    """A weight to train.

    Args:
        target: Where it is in the model.
        quantizer: Makes it trainable.
        quantized: What it was quantized to.
    """

    target: WeightTarget
    quantizer: WeightQuantizer
    quantized: QuantizedWeight


@dataclass(frozen=True)
class BlockTask:
    """A decoder block to train against its full-precision outputs.

    Args:
        index: Position of the block, from 0.
        model: The model that target names refer to; of its blocks, only this one is loaded.
        block: The block, with its full-precision weights.
        weights: What to train.
        run: Runs the block on hidden states [1, length, hidden size], or on a batch of such if the block can.
        samples: How many sequences there are.
        inputs: Returns what enters the block, [n, length, hidden size] for n positions.
        outputs: Returns what shall leave it, for the same positions.
    """

    index: int
    model: nn.Module
    block: nn.Module
    weights: Sequence[TrainableWeight]
    run: Callable[[Tensor], Tensor]
    samples: int
    inputs: Callable[[Sequence[int]], Tensor]
    outputs: Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class TrainedBlock:
    """What training made of a block.

    Args:
        weights: The weights as they are quantized now, by target name.
        state: Latent weights and parameters, for training that goes on from here.
        record: Plain JSON values: losses before and after, and the learning curve.
    """

    weights: Mapping[str, QuantizedWeight]
    state: Mapping[str, Tensor]
    record: Mapping[str, Any]


class BlockTrainer(Protocol):
    """Trains one block at a time."""

    @property
    def reference(self) -> str:
        """Outputs to match: `parent` for those of the parent model, `inputs` for what the unquantized block makes."""

    def train(self, task: BlockTask) -> TrainedBlock:
        """Train a block; its modules are left as they were."""
