"""Expanding some row tiles to float32, as an LLVM module; for products with many rows of activations."""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Any

from llvmlite import ir

from lowbit import RowTiles
from lowbit_cpu.tile_shape import TileShape
from lowbit_cpu.vector_ir import (
    FLOAT,
    LANES,
    WORD,
    WORDS,
    Arguments,
    Builder,
    Value,
    add_parallel,
    for_range,
    index,
    load,
    new_run,
    same_floats,
    same_words,
    share_bounds,
    store,
)


class ExpansionArgument(IntEnum):
    """What the expansion is told; addresses first."""

    THREAD_NUMBER = 0
    THREAD_COUNT = auto()
    PLANE_WORDS = auto()
    OUT = auto()
    GROUPS = auto()
    FIRST_TILE = auto()
    TILES = auto()
    OUT_STRIDE = auto()


POINTERS: dict[IntEnum, Any] = {ExpansionArgument.PLANE_WORDS: WORD, ExpansionArgument.OUT: FLOAT}


def expansion_module(shape: TileShape) -> Any:
    """Return the module of `run` and `parallel`: out[j, r] = W[first row + r, j], rows of a tile side by side."""
    module = ir.Module("row_tiles_expansion")
    builder, array, share, shares = new_run(module)
    arguments = Arguments(builder, array, POINTERS)
    words, out, groups, first_tile, tiles, stride = (arguments[name] for name in list(ExpansionArgument)[2:])
    first, last = share_bounds(builder, builder.mul(groups, tiles), share, shares)

    def unit(number: Value, _: list[Value]) -> list[Value]:
        """Expand one group of one tile."""
        group, tile = builder.sdiv(number, tiles), builder.srem(number, tiles)
        position = builder.add(builder.mul(builder.add(first_tile, tile), groups), group)
        source = builder.gep(words, [builder.mul(position, index(shape.tile_words))])
        column = builder.mul(group, index(shape.group_words * RowTiles.word_bits))
        target = builder.gep(out, [builder.add(builder.mul(column, stride), builder.mul(tile, index(LANES)))])
        _expand_tile(builder, shape, source, target, stride)
        return []

    for_range(builder, first, last, index(1), [], unit)
    builder.ret_void()
    add_parallel(module, ExpansionArgument.THREAD_NUMBER, ExpansionArgument.THREAD_COUNT)
    return module


def _expand_tile(builder: Builder, shape: TileShape, source: Value, target: Value, stride: Value) -> None:
    scales = [shape.scales(builder, source, plane) for plane in range(shape.planes)]
    offsets = shape.scales(builder, source, shape.planes) if shape.has_offsets else None

    def word(number: Value, _: list[Value]) -> list[Value]:
        """Expand one word of each plane."""
        places = [builder.add(number, index(plane * shape.group_words)) for plane in range(shape.planes)]
        bits = [load(builder, source, builder.mul(place, index(LANES)), WORDS) for place in places]
        column = builder.mul(number, index(RowTiles.word_bits))
        for bit in range(RowTiles.word_bits):
            values = [] if offsets is None else [offsets]
            for plane_bits, scale in zip(bits, scales, strict=True):
                chosen = builder.and_(plane_bits, same_words(1 << bit))
                mask = builder.icmp_unsigned("!=", chosen, same_words(0))
                values.append(builder.select(mask, scale, same_floats(0.0)))
            total = values[0]
            for value in values[1:]:
                total = builder.fadd(total, value)
            store(builder, total, target, builder.mul(builder.add(column, index(bit)), stride))
        return []

    for_range(builder, index(0), index(shape.group_words), index(1), [], word)
