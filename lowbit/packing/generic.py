"""The generic packer: any format, from its declaration alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lowbit.contracts import Bits, Codes, Field, FormatSpec, PackedWeight, Packer, QuantizedWeight, TensorLayout
from lowbit.contracts.fields import declared_fields
from lowbit.packing.bits import pack_bits, packed_length, unpack_bits


class GenericPacker(Packer):
    """Packs bit and code fields along their last dimension, each row starting on a byte; stores the rest as it is."""

    name: ClassVar[str] = "plain"
    formats: ClassVar[tuple[str, ...]] = ("*",)

    def layout(self, spec: FormatSpec, format_class: type[QuantizedWeight]) -> dict[str, TensorLayout]:
        """Say which tensors `pack` makes for a resolved declaration."""
        return {name: _layout(spec, name, field) for name, field in declared_fields(format_class).items()}

    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        """Pack every declared field."""
        spec = weight.spec()
        fields = declared_fields(type(weight))
        packed = {name: _pack_field(spec, fields[name], tensor) for name, tensor in weight.tensors().items()}
        return PackedWeight(spec, self.name, packed)

    def unpack(self, packed: PackedWeight, format_class: type[QuantizedWeight]) -> QuantizedWeight:
        """Unpack every declared field."""
        spec = packed.spec
        fields = declared_fields(format_class)
        tensors = {name: _unpack_field(spec, field, packed.tensors[name]) for name, field in fields.items()}
        return format_class.from_tensors(spec, tensors)


def _layout(spec: FormatSpec, name: str, field: Field) -> TensorLayout:
    shape = spec.shape(field)
    if isinstance(field, Bits | Codes):
        packed = (*shape[:-1], packed_length(shape[-1], spec.width(field)))
        return TensorLayout(packed, torch.uint8, field.role)
    return TensorLayout(shape, spec.dtype(name), field.role)


def _pack_field(spec: FormatSpec, field: Field, tensor: Tensor) -> Tensor:
    if isinstance(field, Bits | Codes):
        return pack_bits(tensor, spec.width(field))
    return tensor.contiguous()


def _unpack_field(spec: FormatSpec, field: Field, tensor: Tensor) -> Tensor:
    if not isinstance(field, Bits | Codes):
        return tensor
    values = unpack_bits(tensor, spec.shape(field)[-1], spec.width(field))
    return values.bool() if isinstance(field, Bits) else values
