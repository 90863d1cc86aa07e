"""Look-ups in tables that are rounded to eight bits: faster, and an approximation.

One permutation of bytes looks up sixteen columns for sixteen rows, and one instruction adds the four bytes of each row.
The tables of a group of columns share one scale, so their sums are exact integers until the group ends.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from lowbit_cpu.lookup_ir import subset_sums
from lowbit_cpu.tile_shape import WORD_TABLES, TileShape
from lowbit_cpu.vector_ir import (
    BYTE,
    FLOAT,
    FLOATS,
    LANES,
    WORD,
    WORDS,
    Builder,
    Value,
    broadcast,
    for_range,
    index,
    intrinsic,
    load,
    same_floats,
    same_words,
    store,
)

LARGEST = 127.0
SMALLEST = 2.0**-100
HALF_TABLE = 64
BYTES = ir.VectorType(BYTE, HALF_TABLE)
TABLE_BYTES = ir.VectorType(BYTE, LANES)


def fill_rounded_group(
    builder: Builder, shape: TileShape, x: Value, tables: Value, number: Value, places: tuple[Value, Value]
) -> None:
    """Emit the tables of one group for one row of activations.

    Args:
        builder: Emits.
        shape: Of the tiles.
        x: Pointer to the block's activations.
        tables: Pointer to the block's tables.
        number: The group within the block.
        places: Where the sum of the group's activations goes, and the scale of its tables, behind `tables`.
    """
    count = WORD_TABLES * shape.group_words
    begin = builder.mul(number, index(count))
    last = ir.Constant(WORD, LANES - 1)

    def measure(offset: Value, carried: list[Value]) -> list[Value]:
        table = subset_sums(builder, x, builder.mul(builder.add(begin, offset), index(4)))
        size = intrinsic(builder, "llvm.fabs.v16f32", FLOATS, [table])
        largest = intrinsic(builder, "llvm.maxnum.v16f32", FLOATS, [carried[0], size])
        return [largest, builder.fadd(carried[1], builder.extract_element(table, last))]

    zero = ir.Constant(FLOAT, 0.0)
    sizes, total = for_range(builder, index(0), index(count), index(1), [same_floats(0.0), zero], measure)
    largest = intrinsic(builder, "llvm.vector.reduce.fmax.v16f32", FLOAT, [sizes])
    inverse = builder.fdiv(ir.Constant(FLOAT, LARGEST), largest)
    # Activations too small to be divided by are zeros.
    inverse = builder.select(builder.fcmp_ordered(">", largest, ir.Constant(FLOAT, SMALLEST)), inverse, zero)
    store(builder, total, tables, places[0])
    # No integer stands for NaN or infinity: zero times such a sum makes the scale, and so the result, NaN.
    scale = builder.fadd(builder.fdiv(largest, ir.Constant(FLOAT, LARGEST)), builder.fmul(total, zero))
    store(builder, scale, tables, places[1])
    factor = broadcast(builder, inverse)
    target = builder.bitcast(tables, BYTE.as_pointer())

    def fill(offset: Value, _: list[Value]) -> list[Value]:
        """Fill one table."""
        place = builder.add(begin, offset)
        table = subset_sums(builder, x, builder.mul(place, index(4)))
        rounded = intrinsic(builder, "llvm.rint.v16f32", FLOATS, [builder.fmul(table, factor)])
        small = builder.trunc(builder.fptosi(rounded, WORDS), TABLE_BYTES)
        # A word's even nibbles share one permutation and its odd nibbles another: four tables each.
        word, nibble = builder.sdiv(place, index(WORD_TABLES)), builder.srem(place, index(WORD_TABLES))
        half, quarter = builder.srem(nibble, index(2)), builder.sdiv(nibble, index(2))
        position = builder.add(builder.mul(word, index(2 * HALF_TABLE)), builder.mul(half, index(HALF_TABLE)))
        position = builder.add(position, builder.mul(quarter, index(LANES)))
        pointer = builder.bitcast(builder.gep(target, [position]), TABLE_BYTES.as_pointer())
        builder.store(small, pointer).align = 1
        return []

    for_range(builder, index(0), index(count), index(1), [], fill)


def rounded_word_product(
    builder: Builder,
    shape: TileShape,
    number: Value,
    pointers: list[Value],
    tables: Value,
    table_offsets: list[Value],
    sums: list[Value],
) -> list[Value]:
    """Emit 32 columns: two permutations for each tile, plane and activation row; sums are of 32-bit integers."""
    sums = list(sums)
    halves = [
        [_table_indices(builder, each) for each in (words, builder.lshr(words, same_words(4)))]
        for words in shape.words(builder, pointers, number)
    ]
    for row, begin in enumerate(table_offsets):
        for half in (0, 1):
            floats = builder.add(builder.mul(number, index(HALF_TABLE // 2)), index(half * HALF_TABLE // 4))
            table = load(builder, tables, builder.add(begin, floats), BYTES)
            for each, indices in enumerate(halves):
                position = row * len(halves) + each
                found = intrinsic(builder, "llvm.x86.avx512.permvar.qi.512", BYTES, [table, indices[half]])
                arguments = [sums[position], same_words(0x01010101), builder.bitcast(found, WORDS)]
                sums[position] = intrinsic(builder, "llvm.x86.avx512.vpdpbusd.512", WORDS, arguments)
    return sums


def rounded_group_sum(builder: Builder, tables: Value, scale_place: Value, scales: Value, sums: Value) -> Any:
    """Return a plane's part of sixteen results: plane scales times table scale times integer sums."""
    factor = broadcast(builder, load(builder, tables, scale_place, FLOAT))
    return builder.fmul(builder.fmul(scales, factor), builder.sitofp(sums, FLOATS))


def _table_indices(builder: Builder, words: Value) -> Value:
    """Return for each byte the entry it looks up: its lower nibble within the table of its place in the word."""
    nibbles = builder.and_(words, same_words(0x0F0F0F0F))
    return builder.bitcast(builder.or_(nibbles, same_words(0x30201000)), BYTES)
