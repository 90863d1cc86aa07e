"""What a quantizer may ask to know about a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor


class StatisticsNeed(Enum):
    """How much a quantizer needs to know of a layer's inputs; more costs more memory and time."""

    NONE = "none"
    SECOND_MOMENT = "second moment"
    HESSIAN = "hessian"


@dataclass(frozen=True)
class LayerStatistics:
    """Running sums over the calibration tokens x that entered a layer.

    Args:
        tokens: Number of tokens seen; for an expert, those that were routed to it.
        second_moment: Sum of x_j^2 over tokens divided by their number, float32 [in]; the diagonal of `hessian` / 2.
        hessian: 2 * X^T X / tokens, float32 [in, in], the layer Hessian of GPTQ; `None` unless asked for.
    """

    tokens: int
    second_moment: Tensor
    hessian: Tensor | None = None
