"""The interleaved packer: both planes and the scales of sixteen rows and a group next to each other."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch

from lowbit import (
    FormatSpec,
    PackedWeight,
    Packer,
    QuantizedWeight,
    RowTiles,
    TensorLayout,
    from_row_tiles,
    row_tiles_shape,
    to_row_tiles,
)
from lowbit_dbllm.format import DualBinaryWeight

TILES = "tiles"


class InterleavedPacker(Packer):
    """Stores everything in one tensor of row tiles, `tiles`, int32 [ceil(out / 16), groups, words a tile].

    A tile is contiguous and holds one group of sixteen rows: the words of the first plane, those of the second, the
    sixteen first scales, the sixteen second ones. Padding is zeros, in three places:

    - rows: the last tile of rows is filled up to sixteen, planes and scales alike;
    - columns: a shorter last group of a row takes the words of a whole one;
    - words: a group whose size is no multiple of 32 is filled up to whole words.

    Scales are stored in the wider of the two fields' dtypes, float32 for float16 beside bfloat16, which holds both
    exactly; `unpack` returns them in their own. A group size of -1 is a group as long as a row.
    """

    name: ClassVar[str] = "interleaved"
    formats: ClassVar[tuple[str, ...]] = (DualBinaryWeight.format,)

    def layout(self, spec: FormatSpec, format_class: type[QuantizedWeight]) -> dict[str, TensorLayout]:
        """Say which tensor `pack` makes, and how many of its bytes are scales and padding."""
        rows, columns, groups = spec.sizes["out"], spec.sizes["in"], spec.sizes["groups"]
        scale_dtype = _scale_dtype(spec)
        shape = row_tiles_shape(rows, columns, resolved_group_size(spec), 2, False, scale_dtype)
        scales = 2 * rows * groups * scale_dtype.itemsize
        # A row's bits count as whole bytes, as in every other layout.
        planes = 2 * rows * -(-columns // 8)
        also = {"scales": scales, "padding": 4 * prod(shape) - scales - planes}
        return {TILES: TensorLayout(shape, torch.int32, "planes", {role: size for role, size in also.items() if size})}

    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        """Lay out a dual-binary weight."""
        spec, tensors = weight.spec(), weight.tensors()
        dtype = _scale_dtype(spec)
        scales = torch.stack([tensors["alpha1"].to(dtype), tensors["alpha2"].to(dtype)])  # [2, out, groups]
        planes = (tensors["plane1"], tensors["plane2"])
        tiles = to_row_tiles(planes, scales, None, resolved_group_size(spec), dtype)
        return PackedWeight(spec, self.name, {TILES: tiles.words})

    def unpack(self, packed: PackedWeight, format_class: type[QuantizedWeight]) -> QuantizedWeight:
        """Recover the dual-binary weight."""
        (plane1, plane2), scales, _ = from_row_tiles(self.row_tiles(packed))
        spec = packed.spec
        tensors = {
            "plane1": plane1,
            "plane2": plane2,
            "alpha1": scales[0].to(spec.dtype("alpha1")),
            "alpha2": scales[1].to(spec.dtype("alpha2")),
        }
        return format_class.from_tensors(spec, tensors)

    def row_tiles(self, packed: PackedWeight) -> RowTiles:
        """Return the tensor as row tiles, without a copy."""
        spec = packed.spec
        rows, columns = spec.sizes["out"], spec.sizes["in"]
        size = resolved_group_size(spec)
        return RowTiles(packed.tensors[TILES], rows, columns, size, 2, False, _scale_dtype(spec))


def resolved_group_size(spec: FormatSpec) -> int:
    """Return the columns a group; -1 stands for a whole row.

    Raises:
        ValueError: The declaration names no such size, or another number of groups than follows from it.
    """
    size = spec.parameters.get("group_size")
    if not isinstance(size, int) or (size != -1 and size < 1):
        raise ValueError(f"group_size must be a positive number or -1, got {size!r}")
    columns, groups = spec.sizes["in"], spec.sizes["groups"]
    size = columns if size == -1 else size
    if size < 1 or groups != -(-columns // size):
        raise ValueError(f"{columns} columns in groups of {size} make no {groups} groups")
    return size


def _scale_dtype(spec: FormatSpec) -> torch.dtype:
    return torch.promote_types(spec.dtype("alpha1"), spec.dtype("alpha2"))
