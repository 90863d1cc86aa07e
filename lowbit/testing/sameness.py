"""Comparing tensors and quantized weights bit by bit, and saying where they differ."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.contracts import QuantizedWeight


def tensor_difference(name: str, expected: Tensor, found: Tensor) -> str:
    """Say how two tensors differ, and where first; empty if every bit is equal."""
    if expected.dtype != found.dtype:
        return f"{name} is {found.dtype}, not {expected.dtype}"
    if expected.shape != found.shape:
        return f"{name} has shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    # Compared as bytes: a zero has two signs, and what is not a number equals nothing.
    differs = (tensor_bytes(expected) != tensor_bytes(found)).any(-1)
    if not bool(differs.any()):
        return ""
    position = int(differs.nonzero()[0])
    index = [int(part) for part in torch.unravel_index(torch.tensor(position), expected.shape)]
    before, after = expected.flatten()[position].item(), found.flatten()[position].item()
    count = f"{int(differs.sum())} of {differs.numel()} elements"
    return f"{name} differs in {count}, first {name}{index}: {after}, not {before}"


def tensor_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, uint8 [elements, bytes an element]."""
    # A copy, as a single row or column may be contiguous and yet have any stride.
    flat = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).reshape(flat.numel(), flat.element_size())


def weight_difference(expected: QuantizedWeight, found: QuantizedWeight) -> str:
    """Say how two quantized weights differ; empty if declaration and every bit are equal."""
    if type(expected) is not type(found):
        return f"a {type(found).__name__}, not a {type(expected).__name__}"
    if expected.spec() != found.spec():
        return f"a weight declared as {found.spec()}, not as {expected.spec()}"
    others = found.tensors()
    told = (tensor_difference(name, tensor, others[name]) for name, tensor in expected.tensors().items())
    return next(filter(None, told), "")
