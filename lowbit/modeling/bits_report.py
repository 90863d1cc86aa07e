"""Bits three ways, counted from the bytes of the file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lowbit.contracts import TensorLayout
from lowbit.modeling.layouts import layout_of
from lowbit.modeling.module_entry import ModuleEntry, packed_module
from lowbit.models.checkpoint import ITEM_BYTES, read_header


class BitsReport(BaseModel):
    """How many bits a weight takes, three ways, and what every byte of the safetensors files is.

    `nominal_bits` is the paper's count. `quantized_bits` is 8 x the bytes of the quantized layers' tensors divided by
    their weights: planes, scales, zero points, masks, padding. `whole_file_bits` is 8 x all bytes of the safetensors
    files, headers and unquantized parts included, divided by all parameters. The items add up to `file_bytes`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nominal_bits: float
    quantized_bits: float
    whole_file_bits: float
    quantized_weights: int
    parameters: int
    quantized_bytes: int
    file_bytes: int
    items: dict[str, int]


def count_bits(files: Iterable[Path], modules: Mapping[str, Any], nominal_bits: float, blocks_name: str) -> BitsReport:
    """Count the bits of written safetensors files.

    Args:
        files: Every safetensors file of the checkpoint.
        modules: `quantization_config.modules`.
        nominal_bits: Mean nominal bits of the quantized weights.
        blocks_name: Name of the model's list of decoder blocks, to tell their norms from embeddings.
    """
    layouts = _layouts(modules)
    items: Counter[str] = Counter()
    unquantized = quantized = total = 0
    for file in files:
        payload = 0
        for name, (dtype, shape) in read_header(file).items():
            elements = math.prod(shape)
            size = elements * ITEM_BYTES[dtype]
            payload += size
            if name in layouts:
                layout = layouts[name]
                items[layout.role] += size - sum(layout.also.values())
                items.update(layout.also)
                quantized += size
            elif size:
                items[f"unquantized: {_part(name, shape, blocks_name)}"] += size
                unquantized += elements
        total += file.stat().st_size
        items["headers"] += file.stat().st_size - payload
    weights = sum(entry["sizes"]["out"] * entry["sizes"]["in"] for entry in modules.values())
    parameters = weights + unquantized
    return BitsReport(
        nominal_bits=nominal_bits,
        quantized_bits=8 * quantized / weights if weights else 0.0,
        whole_file_bits=8 * total / parameters,
        quantized_weights=weights,
        parameters=parameters,
        quantized_bytes=quantized,
        file_bytes=total,
        items=dict(sorted(items.items())),
    )


def _layouts(modules: Mapping[str, Any]) -> dict[str, TensorLayout]:
    layouts = {}
    for name, value in modules.items():
        entry = ModuleEntry.model_validate(value)
        home = packed_module(name, entry.fused)
        for part, layout in layout_of(entry.spec(), entry.packer).items():
            layouts[f"{home}.{part}"] = layout
    return layouts


def _part(name: str, shape: tuple[int, ...], blocks_name: str) -> str:
    if name.startswith(blocks_name + "."):
        return "norms and biases of blocks" if len(shape) < 2 else "matrices of blocks"
    return "norms and biases outside blocks" if len(shape) < 2 else "embeddings and head"
