"""The quantization of one weight: what its quantizer is given, what it must return, and what is reported."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.contracts import LayerReport, LayerStatistics, QuantizedWeight, StatisticsNeed, WeightQuantizer
from lowbit.errors import LowbitError, QuantizationWarning
from lowbit.models import WeightTarget
from lowbit.models.soundness import require_finite

Diagnose = Callable[[QuantizedWeight], Mapping[str, float]]
"""Returns plugins' numbers about one quantized weight."""


@dataclass(frozen=True)
class QuantizedTarget:
    """What became of one weight.

    Args:
        quantized: The weight.
        notes: What its quantizer warned of.
        seconds: Wall time that the quantizer took.
    """

    quantized: QuantizedWeight
    notes: tuple[str, ...]
    seconds: float


def quantize_target(
    target: WeightTarget,
    weight: Tensor,
    statistics: LayerStatistics | None,
    quantizer: WeightQuantizer,
    seed: int,
) -> QuantizedTarget:
    """Quantize one weight.

    Args:
        target: Which one.
        weight: float32 [out, in].
        statistics: What its quantizer asked for.
        quantizer: Does it.
        seed: The run's; decides the quantizer's random draws together with the target's name.

    Raises:
        LowbitError: Weight or statistics are not finite, or the quantizer fails or breaks its contract.
    """
    started = time.monotonic()
    require_finite(weight, target.name)
    if statistics is not None:
        _require_finite_inputs(statistics, target.name)
    with _kept_warnings() as notes:
        quantized = _checked(quantizer, weight, statistics, _generator(seed, target.name), target)
    return QuantizedTarget(quantized, tuple(notes), time.monotonic() - started)


def report_target(
    target: WeightTarget,
    weight: Tensor,
    made: QuantizedTarget,
    final: QuantizedWeight,
    calibration_tokens: int | None,
    diagnose: Diagnose,
) -> LayerReport:
    """Describe a weight as it leaves its block, and, if it was trained, as it was before.

    Args:
        target: Which one.
        weight: As it was, float32 [out, in].
        made: What it was quantized to.
        final: What it is after training; the same object where there was none.
        calibration_tokens: Tokens its statistics came from; `None` if its quantizer needs none.
        diagnose: Returns plugins' numbers.
    """
    return LayerReport(
        name=target.name,
        weights=target.weights,
        nominal_bits=final.nominal_bits,
        relative_error=_relative_error(weight, final.dequantize()),
        calibration_tokens=calibration_tokens,
        diagnostics=diagnose(final),
        notes=made.notes,
        untrained={} if final is made.quantized else diagnose(made.quantized),
    )


def counted_tokens(quantizer: WeightQuantizer, seen: int) -> int | None:
    """Return the number of tokens to report: `None` of a quantizer that needs no statistics."""
    return None if quantizer.needs is StatisticsNeed.NONE else seen


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _checked(
    quantizer: WeightQuantizer,
    weight: Tensor,
    statistics: LayerStatistics | None,
    generator: torch.Generator,
    target: WeightTarget,
) -> QuantizedWeight:
    """Quantize, and hold the quantizer to its contract."""
    try:
        quantized = quantizer.quantize(weight, statistics, generator)
    except LowbitError:
        raise
    except Exception as error:
        raise LowbitError(
            f"quantizer {quantizer.name} failed on {target.name}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(quantized, QuantizedWeight):
        raise LowbitError(
            f"quantizer {quantizer.name} returned {type(quantized).__name__} for {target.name}; "
            "it must return a QuantizedWeight"
        )
    expected = (target.out_features, target.in_features)
    try:
        shape = quantized.shape
    except ValueError as error:
        raise LowbitError(f"quantizer {quantizer.name} broke its format on {target.name}: {error}") from error
    if shape != expected:
        raise LowbitError(f"quantizer {quantizer.name} returned shape {shape} for {target.name}; expected {expected}")
    return quantized


def _require_finite_inputs(statistics: LayerStatistics, name: str) -> None:
    if not bool(torch.isfinite(statistics.second_moment).all()):
        columns = int((~torch.isfinite(statistics.second_moment)).sum())
        raise LowbitError(
            f"the inputs of {name} are not finite in {columns} of {len(statistics.second_moment)} columns; "
            "the model overflows on the calibration text: give other text, or check the parent"
        )


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Collect the quantizer's own warnings and pass all others on."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", QuantizationWarning)
        yield notes
    for warning in caught:
        if issubclass(warning.category, QuantizationWarning):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _relative_error(weight: Tensor, dense: Tensor) -> float:
    norm = float(weight.square().sum())
    return float((weight - dense).square_().sum()) / norm if norm else 0.0
