"""What observers of a run are told, beside finished blocks and training steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class QuantizedLayer:
    """One weight that was quantized; its block is not committed yet.

    Args:
        name: The weight target's name.
        block: Position of its block, from 0.
        number: Position among the block's quantized weights, from 1.
        layers: Quantized weights of the block.
        seconds: Wall time that the quantizer took.
    """

    name: str
    block: int
    number: int
    layers: int
    seconds: float


@dataclass(frozen=True)
class EvaluationStep:
    """How far an evaluation is with the requests of one kind.

    The harness answers the requests of one kind together, of all tasks that have such requests, longest first.

    Args:
        tasks: The tasks whose requests these are.
        unit: What is counted: requests, or windows of text.
        done: How many were answered.
        total: How many there are; `None` where it is not known before the end.
    """

    tasks: tuple[str, ...]
    unit: Literal["requests", "windows"]
    done: int
    total: int | None
