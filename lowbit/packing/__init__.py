"""Packing: bit primitives and the generic packer that follows from a format's declared fields."""

from lowbit.packing.bits import pack_bits, packed_length, unpack_bits
from lowbit.packing.generic import GenericPacker
from lowbit.packing.row_tiles import from_row_tiles, row_tiles_shape, split_row_tiles, to_row_tiles

__all__ = [
    "GenericPacker",
    "from_row_tiles",
    "pack_bits",
    "packed_length",
    "row_tiles_shape",
    "split_row_tiles",
    "to_row_tiles",
    "unpack_bits",
]
