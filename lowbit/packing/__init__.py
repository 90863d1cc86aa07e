"""Packing: bit primitives and the generic packer that follows from a format's declared fields."""

from lowbit.packing.bits import pack_bits, packed_length, unpack_bits
from lowbit.packing.generic import GenericPacker

__all__ = ["GenericPacker", "pack_bits", "packed_length", "unpack_bits"]
