"""`TileShape`: where a tile keeps its words and its scales, and how many tiles generated code takes at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowbit import RowTiles
from lowbit_cpu.instruction_sets import InstructionSet
from lowbit_cpu.lookup_ir import ENTRIES
from lowbit_cpu.vector_ir import LANES, WORDS, Builder, Value, index, load, load_scales

WORD_TABLES = 8
"""Look-up tables that a 32-bit word needs, one each four columns."""


@dataclass(frozen=True)
class TileShape:
    """What generated code depends on.

    Args:
        planes: Number of planes.
        has_offsets: Whether there are offsets.
        scale_dtype: Dtype of the scales.
        group_words: 32-bit words of a row, plane and group.
        instruction_set: What to emit.
    """

    planes: int
    has_offsets: bool
    scale_dtype: torch.dtype
    group_words: int
    instruction_set: InstructionSet

    @classmethod
    def of(cls, tiles: RowTiles, instruction_set: InstructionSet) -> TileShape:
        """Return the shape of given tiles."""
        return cls(tiles.planes, tiles.has_offsets, tiles.scale_dtype, tiles.group_words, instruction_set)

    @property
    def plane_words(self) -> int:
        """Words of all planes of a tile."""
        return LANES * self.planes * self.group_words

    @property
    def scale_words(self) -> int:
        """Words that sixteen scales take."""
        return LANES * self.scale_dtype.itemsize // 4

    @property
    def tile_words(self) -> int:
        """Words of a whole tile."""
        return self.plane_words + (self.planes + self.has_offsets) * self.scale_words

    @property
    def group_tables(self) -> int:
        """Floats that the tables of a group take."""
        entries = WORD_TABLES * self.group_words * ENTRIES
        return entries // 4 if self.rounded else entries

    @property
    def rounded(self) -> bool:
        """Whether tables are rounded to eight bits."""
        return self.instruction_set is InstructionSet.AVX512_ROUNDED

    def words(self, builder: Builder, tiles: list[Value], number: Value) -> list[Value]:
        """Load word `number` of the sixteen rows, for each of several tiles and each plane."""
        places = [builder.add(number, index(plane * self.group_words)) for plane in range(self.planes)]
        return [load(builder, tile, builder.mul(place, index(LANES)), WORDS) for tile in tiles for place in places]

    def scales(self, builder: Builder, tile: Value, number: int) -> Value:
        """Load the scales of plane `number`; the offsets are numbered behind the last plane."""
        offset = index(self.plane_words + number * self.scale_words)
        return load_scales(builder, tile, offset, self.scale_dtype, self.instruction_set)


@dataclass(frozen=True)
class Blocking:
    """How much is done at once.

    Args:
        tiles: Row tiles that share a loaded table, by the rows of activations that share the shifted words.
    """

    tiles: dict[int, int]


BLOCKING = {
    InstructionSet.AVX512: Blocking({1: 8, 2: 2, 4: 1}),
    InstructionSet.AVX512_ROUNDED: Blocking({1: 4, 4: 1}),
    InstructionSet.AVX2: Blocking({1: 2, 4: 1}),
    InstructionSet.PORTABLE: Blocking({1: 1}),
}
