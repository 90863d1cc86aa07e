"""What must hold of a quantized weight and each packer that serves its format."""

from __future__ import annotations

from typing import Any

from lowbit.contracts import PackedWeight, Packer, QuantizedWeight
from lowbit.packing import GenericPacker
from lowbit.registry import registry
from lowbit.testing.failure import ANY_ERROR, ConformanceError
from lowbit.testing.sameness import tensor_difference, weight_difference


def serves(packer: Packer | type[Packer], format_name: str) -> bool:
    """Say whether a packer serves a format."""
    return format_name in packer.formats or "*" in packer.formats


def packers_for(weight: QuantizedWeight) -> list[Packer]:
    """Return the generic packer, and every registered one that serves the weight's format."""
    registered = [entry.item() for _, entry in sorted(registry().table("packer").items())]
    return [GenericPacker(), *(packer for packer in registered if serves(packer, weight.format))]


def require_same_weight(expected: QuantizedWeight, found: QuantizedWeight, what: str, reproduce: str) -> None:
    """Check that two quantized weights are equal to the last bit.

    Raises:
        ConformanceError: They are not.
    """
    if difference := weight_difference(expected, found):
        raise ConformanceError(what, difference, reproduce)


def require_unpacks(weight: QuantizedWeight, packer: Packer, reproduce: str) -> None:
    """Check that a packer gives back every bit of a weight, and the same matrix.

    Raises:
        ConformanceError: It does not.
    """
    what = f"packer {packer.name!r} unpacks exactly the weight that it packed"
    shown = f"{reproduce}\npacked = packer.pack(quantized)\npacker.unpack(packed, type(quantized))"
    try:
        packed = packer.pack(weight)
        found = packer.unpack(packed, type(weight))
    except ANY_ERROR as error:  # whatever the code under test raises
        raise ConformanceError(what, f"{type(error).__name__}: {error}", shown) from error
    if packed.packer != packer.name:
        raise ConformanceError(f"packed weights carry the packer's name {packer.name!r}", repr(packed.packer), shown)
    require_same_weight(weight, found, what, shown)
    if difference := tensor_difference("dequantize()", weight.dequantize(), found.dequantize()):
        raise ConformanceError(what, difference, shown)


def require_layout(weight: QuantizedWeight, packer: Packer, reproduce: str) -> None:
    """Check that a packer's `layout` says what `pack` makes: names, shapes, dtypes and bytes, contiguous.

    Raises:
        ConformanceError: It does not.
    """
    packed = packer.pack(weight)
    declared: dict[str, Any] = {
        name: (entry.shape, entry.dtype, entry.bytes)
        for name, entry in packer.layout(weight.spec(), type(weight)).items()
    }
    made = {name: (tuple(t.shape), t.dtype, t.nbytes) for name, t in packed.tensors.items()}
    shown = f"{reproduce}\npacker.layout(quantized.spec(), type(quantized)), packer.pack(quantized).tensors"
    if declared != made:
        name = next(name for name in {**declared, **made} if declared.get(name) != made.get(name))
        raise ConformanceError(
            f"`layout` of packer {packer.name!r} says what `pack` makes (shape, dtype, bytes)",
            f"tensor {name!r} is declared as {declared.get(name)} and made as {made.get(name)}",
            shown,
        )
    for name, tensor in packed.tensors.items():
        if not tensor.is_contiguous():
            raise ConformanceError("packed tensors are contiguous", f"tensor {name!r} is not", shown)
    _require_accounted(weight, packer, packed, shown)


def _require_accounted(weight: QuantizedWeight, packer: Packer, packed: PackedWeight, reproduce: str) -> None:
    """Check that what a layout counts under other lines of the bits report is a part of the tensor's bytes."""
    for name, entry in packer.layout(weight.spec(), type(weight)).items():
        others = sum(entry.also.values())
        if others > packed.tensors[name].nbytes or any(size < 0 for size in entry.also.values()):
            raise ConformanceError(
                "the bytes that a layout counts under other roles are a part of its tensor's",
                f"tensor {name!r} has {packed.tensors[name].nbytes} bytes, of which {dict(entry.also)} are others'",
                reproduce,
            )


def require_packs(weight: QuantizedWeight, reproduce: str = "quantized") -> None:
    """Check a weight with every packer that serves it.

    Raises:
        ConformanceError: A packer loses something, or makes what its layout does not say.
    """
    for packer in packers_for(weight):
        require_unpacks(weight, packer, reproduce)
        require_layout(weight, packer, reproduce)
