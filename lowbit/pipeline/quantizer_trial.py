"""Which formats a quantizer makes, found out by quantizing small random matrices."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowbit.contracts import FormatSpec, LayerStatistics, QuantizedWeight, StatisticsNeed, WeightQuantizer
from lowbit.recipe.resolve import quantizer_config

TRIAL_ROWS, TRIAL_COLUMNS, TRIAL_TOKENS = 64, 256, 512


@dataclass(frozen=True)
class TrialWeight:
    """A small matrix that a quantizer quantized.

    Args:
        matrix: float32 [out, in].
        quantized: What `quantize` made of it.
        frozen: What `parametrize` and `freeze` made of that; `None` without training.
    """

    matrix: Tensor
    quantized: QuantizedWeight
    frozen: QuantizedWeight | None


@dataclass(frozen=True)
class Trial:
    """What a quantizer did with small matrices.

    Args:
        weights: The matrices.
        declared: Formats that the quantizer declares.
        trainable: Whether it offers training, and that worked.
        training_problem: Why it cannot be trained.
        problem: Why it quantized nothing.
    """

    weights: tuple[TrialWeight, ...] = ()
    declared: tuple[str, ...] = ()
    trainable: bool = False
    training_problem: str = ""
    problem: str = ""

    def specs(self, trained: bool) -> dict[str, FormatSpec]:
        """Return the declaration of every format that was met, by name.

        Args:
            trained: Of the weights after training, or of those that `quantize` made.
        """
        made = [weight.frozen if trained else weight.quantized for weight in self.weights]
        specs = [weight.spec() for weight in made if weight is not None]
        return {spec.format: spec for spec in reversed(specs)}

    def formats(self) -> tuple[str, ...]:
        """Return the names of all formats that were met or are declared."""
        return tuple(sorted({*self.specs(False), *self.specs(True), *self.declared}))


def try_quantizer(quantizer: type[WeightQuantizer], options: Mapping[str, Any]) -> Trial:
    """Quantize small matrices, and freeze them as for training; what was tried once is remembered.

    An exception of the quantizer becomes the trial's `problem`.

    Args:
        quantizer: The class.
        options: Its options; absent ones have their defaults.

    Raises:
        LowbitError: An option is unknown or has a wrong value.
    """
    config = quantizer_config(quantizer, options)
    return _tried(quantizer, json.dumps(config.model_dump(mode="json"), sort_keys=True))


@cache
def _tried(quantizer: type[WeightQuantizer], options: str) -> Trial:
    made = quantizer(quantizer_config(quantizer, json.loads(options)))
    try:
        quantized = [(matrix, quantize_trial(made, matrix)) for matrix in trial_matrices()]
    except (Exception, SystemExit) as error:  # whatever a plugin raises
        return Trial(declared=made.formats, problem=f"quantizing a small random matrix failed: {describe(error)}")
    plain = tuple(TrialWeight(matrix, weight, None) for matrix, weight in quantized)
    if not made.is_trainable():
        return Trial(plain, made.formats, training_problem="it has no `parametrize`")
    try:
        frozen = tuple(TrialWeight(m, w, made.freeze(m, made.parametrize(m, w))) for m, w in quantized)
    except (Exception, SystemExit) as error:
        return Trial(plain, made.formats, training_problem=f"training a small matrix failed: {describe(error)}")
    return Trial(frozen, made.formats, trainable=True)


def describe(error: BaseException) -> str:
    """Return an exception as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def trial_matrices() -> Iterator[Tensor]:
    """Yield a matrix of Gaussian numbers, and one whose large numbers stand in few columns, float32 [out, in]."""
    generator = torch.Generator().manual_seed(0)
    even = torch.randn(TRIAL_ROWS, TRIAL_COLUMNS, generator=generator)
    yield even
    sizes = torch.ones(TRIAL_COLUMNS)
    sizes[: TRIAL_COLUMNS // 16] = 16
    yield even * sizes


def quantize_trial(quantizer: WeightQuantizer, matrix: Tensor) -> QuantizedWeight:
    """Quantize one small matrix, with statistics of Gaussian inputs if the quantizer needs any.

    Args:
        quantizer: Made with its options.
        matrix: float32 [out, in].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantizer.quantize(
            matrix.clone(), _statistics(quantizer.needs, matrix.shape[1]), torch.Generator().manual_seed(0)
        )


def _statistics(need: StatisticsNeed, columns: int) -> LayerStatistics | None:
    if need is StatisticsNeed.NONE:
        return None
    inputs = torch.randn(TRIAL_TOKENS, columns, generator=torch.Generator().manual_seed(1))
    hessian = 2 * inputs.T @ inputs / TRIAL_TOKENS  # [in, in]
    return LayerStatistics(TRIAL_TOKENS, hessian.diagonal() / 2, hessian if need is StatisticsNeed.HESSIAN else None)
