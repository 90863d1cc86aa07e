"""Quantizing matrices with a quantizer class, and what comes of the matrices that every quantizer must survive."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowbit.contracts import QuantizedWeight, WeightQuantizer
from lowbit.recipe.resolve import quantizer_config
from lowbit.testing.failure import ANY_ERROR
from lowbit.testing.matrices import all_weights, statistics_for


def make_quantizer(quantizer: type[WeightQuantizer], **options: Any) -> WeightQuantizer:
    """Make a quantizer with some of its options."""
    return quantizer(quantizer_config(quantizer, options))


def quantize_matrix(quantizer: type[WeightQuantizer], weight: Tensor, seed: int = 0, **options: Any) -> QuantizedWeight:
    """Quantize one matrix, with statistics of made-up inputs if the quantizer needs any.

    Args:
        quantizer: The class.
        weight: float32 [out, in].
        seed: Of the generator that the quantizer is given.
        **options: Of the quantizer.
    """
    made = make_quantizer(quantizer, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made.quantize(weight, statistics_for(made.needs, weight.shape[1]), torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Quantized:
    """A matrix and what became of it.

    Args:
        code: Code that makes the matrix.
        weight: The matrix, float32 [out, in].
        result: What `quantize` returned; `None` if it raised.
        fault: What is wrong with the result; empty if it is a whole quantized weight.
        is_finite: Whether the fault, if any, is not one of numbers that are not finite.
    """

    code: str
    weight: Tensor
    result: QuantizedWeight | None
    fault: str = ""
    is_finite: bool = True


def quantize_all(quantizer: type[WeightQuantizer], options: Mapping[str, Any]) -> tuple[Quantized, ...]:
    """Quantize every matrix of the kit, once a process for the same quantizer and options."""
    return _quantize_all(quantizer, json.dumps(dict(options), sort_keys=True))


@cache
def _quantize_all(quantizer: type[WeightQuantizer], options: str) -> tuple[Quantized, ...]:
    return tuple(_quantize(quantizer, json.loads(options), code, weight) for code, weight in all_weights().items())


def _quantize(quantizer: type[WeightQuantizer], options: Mapping[str, Any], code: str, weight: Tensor) -> Quantized:
    try:
        result: object = quantize_matrix(quantizer, weight.clone(), **options)
    except ANY_ERROR as error:  # whatever the code under test raises
        return Quantized(code, weight, None, f"{type(error).__name__}: {error}")
    if not isinstance(result, QuantizedWeight):
        return Quantized(code, weight, None, f"a {type(result).__name__}")
    try:
        fault, is_finite = _fault(weight, result)
    except ANY_ERROR as error:  # likewise
        fault, is_finite = f"{type(error).__name__}: {error}", True
    return Quantized(code, weight, result, fault, is_finite)


def _fault(weight: Tensor, result: QuantizedWeight) -> tuple[str, bool]:
    """Say what is wrong with a quantized weight, and whether that is no matter of numbers that are not finite."""
    for name, tensor in result.tensors().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return f"{describe_not_finite(tensor)} in {name!r}", False
    dense = result.dequantize()
    if dense.dtype != torch.float32 or dense.shape != weight.shape:
        return f"`dequantize()` returns {dense.dtype} {tuple(dense.shape)}", True
    if not bool(dense.isfinite().all()):
        return f"{describe_not_finite(dense)} in `dequantize()`", False
    result.spec()
    if result.shape != tuple(weight.shape):
        return f"`shape` is {result.shape}", True
    return "", True


def describe_not_finite(tensor: Tensor) -> str:
    """Name the first element of a tensor that is not finite."""
    position = [int(part) for part in (~tensor.isfinite()).nonzero()[0]]
    return f"{tensor[tuple(position)].item()} at {position}"
