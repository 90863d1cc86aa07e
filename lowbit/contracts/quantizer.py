"""`WeightQuantizer`: what turns one matrix into a `QuantizedWeight`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from lowbit.contracts.formats import QuantizedWeight
from lowbit.contracts.parametrization import Parametrization
from lowbit.contracts.statistics import LayerStatistics, StatisticsNeed


class WeightQuantizer(ABC):
    """Quantizes one weight matrix at a time.

    A subclass sets `name`, may nest a pydantic `Config` whose fields are its options, and may declare by `needs` that
    it wants statistics of the layer's inputs; where that depends on its options, it sets `needs` as it is made. One
    that declares none runs without any forward pass of the model.

    Which formats it makes is found out by quantizing small random matrices. One that chooses among several by the
    weights' values names them in `formats`, as such matrices may not show them all.

    One whose weights can be trained overrides `parametrize` and `freeze` as well.
    """

    name: ClassVar[str]
    needs: StatisticsNeed = StatisticsNeed.NONE
    formats: tuple[str, ...] = ()

    class Config(BaseModel):
        """Options of the quantizer; a subclass declares its own."""

    def __init__(self, config: BaseModel | None = None) -> None:
        self.config: Any = self.Config() if config is None else config

    @abstractmethod
    def quantize(
        self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator
    ) -> QuantizedWeight:
        """Quantize one matrix.

        What it meets and works around it may say with `warnings.warn(..., QuantizationWarning)`; the weight's report
        keeps it.

        Args:
            weight: float32 [out, in]; finite; not to be changed in place.
            statistics: As declared by `needs`; `None` for a quantizer that needs none, and for an expert that no
                calibration token was routed to.
            generator: The only source of random numbers, seeded from the run's seed and the weight's name.

        Returns:
            The quantized weight, on the device of `weight`.
        """

    def parametrize(self, weight: Tensor, quantized: QuantizedWeight) -> Parametrization:
        """Make one matrix trainable, starting from what `quantize` returned for it.

        Args:
            weight: The full-precision matrix, float32 [out, in]; the latent weight starts as a copy of it.
            quantized: What it was quantized to.

        Returns:
            A parametrization whose first output is `quantized.dequantize()`, unless its class says otherwise.
        """
        raise NotImplementedError(f"quantizer {self.name} offers no training")

    def freeze(self, latent_weight: Tensor, parametrization: Parametrization) -> QuantizedWeight:
        """Turn a trained matrix into its quantized weight; `dequantize()` is the parametrization's output.

        Args:
            latent_weight: float32 [out, in].
            parametrization: What `parametrize` made, trained.
        """
        raise NotImplementedError(f"quantizer {self.name} offers no training")

    @classmethod
    def is_trainable(cls) -> bool:
        """Say whether the quantizer offers training."""
        return cls.parametrize is not WeightQuantizer.parametrize
