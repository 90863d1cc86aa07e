"""Brings quantized weights from the process that made them to all others: declared tensors, byte by byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowbit.contracts import FormatSpec, QuantizedWeight, Ranks, declared_fields
from lowbit.quantization.ranks import agreed

Formats = Callable[[str], type[QuantizedWeight]]
"""Finds the class of a format by its name."""


def share_weights(
    ranks: Ranks,
    mine: Mapping[str, QuantizedWeight],
    owners: Mapping[str, int],
    formats: Formats | None,
) -> dict[str, QuantizedWeight]:
    """Return every process's weights, in the order of `owners`.

    Args:
        ranks: The processes.
        mine: What this process made, by target name.
        owners: Who made what; the same in every process.
        formats: Finds the class of a format; needed by several processes.
    """
    if ranks.size == 1:
        return {name: mine[name] for name in owners}
    specs: dict[str, FormatSpec] = {}
    with agreed(ranks):
        own_specs = {name: weight.spec() for name, weight in mine.items()}
    for told in ranks.gather(own_specs):
        specs.update(told)
    with agreed(ranks):
        assert formats is not None
        classes = {name: formats(specs[name].format) for name in owners}
    made: dict[str, QuantizedWeight] = {}
    for name, owner in owners.items():
        if owner == ranks.rank:
            made[name] = mine[name]
            ranks.broadcast(_to_bytes(mine[name]).to(ranks.device), owner)
        else:
            buffer = torch.empty(_byte_count(specs[name], classes[name]), dtype=torch.uint8, device=ranks.device)
            ranks.broadcast(buffer, owner)
            made[name] = _from_bytes(buffer, specs[name], classes[name])
    return made


def _to_bytes(weight: QuantizedWeight) -> Tensor:
    """Return a weight's tensors one after the other, uint8 [bytes]."""
    return torch.cat([tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in weight.tensors().values()])


def _from_bytes(buffer: Tensor, spec: FormatSpec, cls: type[QuantizedWeight]) -> QuantizedWeight:
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, shape, dtype in _outline(spec, cls):
        stop = start + math.prod(shape) * dtype.itemsize
        tensors[name] = buffer[start:stop].clone().view(dtype).reshape(shape)
        start = stop
    return cls.from_tensors(spec, tensors)


def _byte_count(spec: FormatSpec, cls: type[QuantizedWeight]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in _outline(spec, cls))


def _outline(spec: FormatSpec, cls: type[QuantizedWeight]) -> list[tuple[str, tuple[int, ...], Any]]:
    """Return name, shape and dtype of each declared tensor, in order."""
    return [(name, spec.shape(field), spec.dtype(name)) for name, field in declared_fields(cls).items()]
