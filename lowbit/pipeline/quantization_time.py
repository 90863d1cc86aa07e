"""Adds up what quantizing a model block by block takes: the work is counted, its pieces were timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lowbit.pipeline.block_cost import BlockCost
from lowbit.pipeline.disk_rate import DiskRate
from lowbit.pipeline.quantizer_cost import QuantizerCost
from lowbit.quantization.plan import QuantizationPlan

FLOAT_BYTES = 4
BLOCK_FILES = 2
"""A block's tensors, and its report."""
CHECKPOINT_FILES = 6


@dataclass(frozen=True)
class Work:
    """What a quantization is made of.

    Args:
        plan: What is quantized.
        samples: Sequences that run through the blocks; 0 where none do.
        length: Tokens a sequence.
        hidden: Numbers a token between blocks.
        stored_bytes: Of the model's files.
        checkpoint_bytes: Of the finished checkpoint's.
    """

    plan: QuantizationPlan
    samples: int
    length: int
    hidden: int
    stored_bytes: int
    checkpoint_bytes: int

    @property
    def activation_bytes(self) -> int:
        """What enters one block."""
        return self.samples * self.length * self.hidden * FLOAT_BYTES


def quantization_seconds(
    work: Work,
    blocks: Mapping[int, BlockCost],
    quantizers: Mapping[tuple[int, int], QuantizerCost],
    disk: DiskRate,
    trains: bool,
) -> dict[str, float]:
    """Return seconds by what they are spent on.

    Args:
        work: What is to be done.
        blocks: What each block costs.
        quantizers: What quantizers cost, by their identity and the matrices' width.
        disk: What files cost.
        trains: Whether blocks are trained, which takes the outputs of the unquantized block.
    """
    number, plan = len(work.plan.blocks), work.plan
    # Every block's input is written once, read to observe and read to run, and the same again for training.
    streams = 2 if trains else 1
    moved = streams * number * work.activation_bytes
    return {
        "statistics": sum(
            work.samples * blocks[index].observe_seconds + blocks[index].finish_seconds for index in blocks
        ),
        "quantizers": sum(
            quantizers[id(plan.quantizers[t.name]), t.in_features].seconds.at(t.out_features)
            for t in plan.targets()
            if t.name in plan.quantizers
        ),
        "forward": work.samples
        * sum(blocks[index].forward_seconds * (streams if index + 1 < number else streams - 1) for index in blocks),
        "files": disk.read(work.stored_bytes)
        + disk.write(moved, streams * number if work.samples else 0)
        + disk.read(moved)
        + disk.write(2 * work.checkpoint_bytes, BLOCK_FILES * number + CHECKPOINT_FILES),
    }
