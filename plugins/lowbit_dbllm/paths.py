"""How the two binary paths of a dual-binary weight work together on a layer's inputs.

A residual split wants a second path that leans against the first (a negative correlation) and towards what the first
leaves over (a positive one). Later criticism of DB-LLM is that it has the former but little of the latter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit import QuantizedWeight, hookimpl, repeat_groups
from lowbit_dbllm.format import DualBinaryWeight


@hookimpl
def lowbit_output_diagnostics(quantized: QuantizedWeight, weight: Tensor, inputs: Tensor) -> dict[str, float]:
    """Return how the outputs y1 = x (alpha1 b1)^T and y2 = x (alpha2 b2)^T relate to each other and to y = x W^T.

    Correlations are Pearson's over all tokens and outputs; one that is undefined, because an output does not vary, is
    left out.

    Args:
        quantized: The weight after training.
        weight: W, float32 [out, in].
        inputs: x, float32 [tokens, in].

    Returns:
        `path_correlation` of y1 and y2, `residual_correlation` of y - y1 and y2, and `relative_output_error`,
        ||y - y1 - y2||^2 / ||y||^2.
    """
    if not isinstance(quantized, DualBinaryWeight):
        return {}
    wanted = inputs @ weight.T  # [tokens, out]
    first = inputs @ _path(quantized.alpha1, quantized.plane1, quantized.group_size).T  # [tokens, out]
    second = inputs @ _path(quantized.alpha2, quantized.plane2, quantized.group_size).T  # [tokens, out]
    residual = wanted - first
    numbers = {
        "path_correlation": _correlation(first, second),
        "residual_correlation": _correlation(residual, second),
        "relative_output_error": _quotient((residual - second).double().square().sum(), wanted.double().square().sum()),
    }
    return {name: number for name, number in numbers.items() if number is not None}


def _path(scales: Tensor, plane: Tensor, group_size: int) -> Tensor:
    """Return scale * plane, [out, in]."""
    return repeat_groups(scales.float(), group_size, plane.shape[1]) * plane


def _correlation(first: Tensor, second: Tensor) -> float | None:
    """Return Pearson's correlation over all elements, or `None` where one of the tensors is constant."""
    a, b = first.double() - first.double().mean(), second.double() - second.double().mean()
    if bool((first == first.flatten()[0]).all()) or bool((second == second.flatten()[0]).all()):
        return None
    return _quotient((a * b).sum(), torch.sqrt(a.square().sum() * b.square().sum()))


def _quotient(part: Tensor, whole: Tensor) -> float | None:
    return float(part / whole) if float(whole) > 0 else None
