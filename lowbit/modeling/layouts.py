"""Which packer lays out which format, and the way from packed tensors back to numbers."""

from __future__ import annotations

from lowbit.contracts import FormatSpec, PackedWeight, Packer, QuantizedWeight, TensorLayout
from lowbit.packing import GenericPacker
from lowbit.registry import registry


def get_packer(name: str) -> Packer:
    """Return a packer by name; `plain` is the generic one.

    Raises:
        UnknownNameError: No plugin registered it.
    """
    return GenericPacker() if name == GenericPacker.name else registry().packer(name)()


def packer_for(format_name: str, wanted: str) -> Packer:
    """Return the wanted packer if it serves the format, else the generic one."""
    packer = get_packer(wanted)
    return packer if format_name in packer.formats or "*" in packer.formats else GenericPacker()


def layout_of(spec: FormatSpec, packer: str) -> dict[str, TensorLayout]:
    """Return the tensors that a packed weight consists of."""
    return get_packer(packer).layout(spec, registry().format(spec.format))


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """Recover the quantized weight from its packed tensors."""
    return get_packer(packed.packer).unpack(packed, registry().format(packed.spec.format))
