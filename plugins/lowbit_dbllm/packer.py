"""The bit-plane packer: both planes as 32-bit words along the input dimension, the layout that kernels read."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lowbit import FormatSpec, PackedWeight, Packer, QuantizedWeight, TensorLayout, pack_bits, unpack_bits
from lowbit_dbllm.format import DualBinaryWeight

WORD_BITS = 32
PLANES = ("plane1", "plane2")
SCALES = ("alpha1", "alpha2")


class BitPlanePacker(Packer):
    """Stores planes as int32 words [out, ceil(in / 32)]; column j is bit j % 32 of word j // 32, zeros fill a row."""

    name: ClassVar[str] = "bit-planes"
    formats: ClassVar[tuple[str, ...]] = (DualBinaryWeight.format,)

    def layout(self, spec: FormatSpec, format_class: type[QuantizedWeight]) -> dict[str, TensorLayout]:
        """Say which tensors `pack` makes: two planes of words and two of scales."""
        words = -(-spec.sizes["in"] // WORD_BITS)
        planes = {name: TensorLayout((spec.sizes["out"], words), torch.int32, "planes") for name in PLANES}
        shape = (spec.sizes["out"], spec.sizes["groups"])
        scales = {name: TensorLayout(shape, spec.dtype(name), "scales") for name in SCALES}
        return {**planes, **scales}

    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        """Lay out a dual-binary weight."""
        tensors = weight.tensors()
        planes = {name: _to_words(tensors[name]) for name in PLANES}
        scales = {name: tensors[name].contiguous() for name in SCALES}
        return PackedWeight(weight.spec(), self.name, {**planes, **scales})

    def unpack(self, packed: PackedWeight, format_class: type[QuantizedWeight]) -> QuantizedWeight:
        """Recover the dual-binary weight."""
        length = packed.spec.sizes["in"]
        planes = {name: unpack_bits(packed.tensors[name].view(torch.uint8), length).bool() for name in PLANES}
        scales = {name: packed.tensors[name] for name in SCALES}
        return format_class.from_tensors(packed.spec, {**planes, **scales})


def _to_words(plane: Tensor) -> Tensor:
    padding = -plane.shape[1] % WORD_BITS
    return pack_bits(torch.nn.functional.pad(plane, (0, padding))).view(torch.int32)  # [out, words]
