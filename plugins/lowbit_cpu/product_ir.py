"""The product of activations with row tiles, as an LLVM module: look-ups only, no weight is expanded."""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Any

from llvmlite import ir

from lowbit import RowTiles
from lowbit_cpu.lookup_ir import ENTRIES, Lookup, lookup_of, subset_sums
from lowbit_cpu.rounded_ir import fill_rounded_group, rounded_group_sum, rounded_word_product
from lowbit_cpu.tile_shape import BLOCKING, WORD_TABLES, Blocking, TileShape
from lowbit_cpu.vector_ir import (
    FLOAT,
    FLOATS,
    INDEX,
    LANES,
    POINTER_OF,
    WORD,
    Arguments,
    Builder,
    Value,
    add_parallel,
    broadcast,
    for_range,
    index,
    load,
    multiply_add,
    new_run,
    same_floats,
    same_words,
    share_bounds,
    smaller,
    store,
)

UNROLLED_WORDS = 4


class ProductArgument(IntEnum):
    """What the product is told; addresses first."""

    THREAD_NUMBER = 0
    THREAD_COUNT = auto()
    PLANE_WORDS = auto()
    X = auto()
    Y = auto()
    SCRATCH = auto()
    ACTIVATION_ROWS = auto()
    GROUPS = auto()
    TILES = auto()
    BLOCK_GROUPS = auto()
    X_STRIDE = auto()
    Y_STRIDE = auto()
    TABLE_STRIDE = auto()
    SHARE_STRIDE = auto()


POINTERS: dict[IntEnum, Any] = {
    ProductArgument.PLANE_WORDS: WORD,
    ProductArgument.X: FLOAT,
    ProductArgument.Y: FLOAT,
    ProductArgument.SCRATCH: FLOAT,
}


def product_module(shape: TileShape) -> Any:
    """Return the module of `run` and `parallel`: y[m, r] += sum over columns of W[r, j] * x[m, j]."""
    module = ir.Module("row_tiles_product")
    fill = _add_fill_tables(module, shape)
    multiply = {count: _add_multiply(module, shape, count, tiles) for count, tiles in _blocking(shape).tiles.items()}
    builder, array, share, shares = new_run(module)
    arguments = Arguments(builder, array, POINTERS)
    named = {name: arguments[name] for name in list(ProductArgument)[2:]}
    first, last = share_bounds(builder, named[ProductArgument.TILES], share, shares)
    tables = builder.gep(named[ProductArgument.SCRATCH], [builder.mul(share, named[ProductArgument.SHARE_STRIDE])])

    def block(start: Value, _: list[Value]) -> list[Value]:
        """Multiply by one block of groups."""
        groups = named[ProductArgument.GROUPS]
        end = smaller(builder, builder.add(start, named[ProductArgument.BLOCK_GROUPS]), groups)
        done = index(0)
        for count in sorted(multiply, reverse=True):
            rows = builder.sub(named[ProductArgument.ACTIVATION_ROWS], done)
            until = builder.add(done, builder.mul(builder.sdiv(rows, index(count)), index(count)))
            _each_batch(builder, shape, named, count, done, until, (start, end, first, last, tables), fill, multiply)
            done = until
        return []

    for_range(builder, index(0), named[ProductArgument.GROUPS], named[ProductArgument.BLOCK_GROUPS], [], block)
    builder.ret_void()
    add_parallel(module, ProductArgument.THREAD_NUMBER, ProductArgument.THREAD_COUNT)
    return module


def _blocking(shape: TileShape) -> Blocking:
    return BLOCKING[shape.instruction_set]


def _each_batch(
    builder: Builder,
    shape: TileShape,
    named: dict[ProductArgument, Value],
    count: int,
    done: Value,
    until: Value,
    block: tuple[Value, Value, Value, Value, Value],
    fill: Value,
    multiply: dict[int, Value],
) -> None:
    """Emit the loop over batches of `count` activation rows: build their tables, multiply them with all tiles."""
    start, end, first, last, tables = block
    stride = named[ProductArgument.TABLE_STRIDE]

    def batch(row: Value, _: list[Value]) -> list[Value]:
        """Multiply some rows of activations."""
        for number in range(count):
            x_offset = builder.mul(builder.add(row, index(number)), named[ProductArgument.X_STRIDE])
            x_offset = builder.add(x_offset, builder.mul(start, index(shape.group_words * RowTiles.word_bits)))
            x = builder.gep(named[ProductArgument.X], [x_offset])
            place = builder.gep(tables, [builder.mul(stride, index(number))])
            builder.call(fill, [x, place, builder.sub(end, start), named[ProductArgument.BLOCK_GROUPS]])
        y = builder.gep(named[ProductArgument.Y], [builder.mul(row, named[ProductArgument.Y_STRIDE])])
        sizes = [named[ProductArgument.GROUPS], named[ProductArgument.BLOCK_GROUPS], stride]
        words, y_stride = named[ProductArgument.PLANE_WORDS], named[ProductArgument.Y_STRIDE]
        builder.call(multiply[count], [words, tables, y, start, end, first, last, *sizes, y_stride])
        return []

    for_range(builder, done, until, index(count), [], batch)


def _internal(module: Any, name: str, kinds: list[Any]) -> tuple[Builder, Any]:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return ir.IRBuilder(function.append_basic_block("entry")), function


def _add_fill_tables(module: Any, shape: TileShape) -> Any:
    """Add `fill_tables(x, tables, groups, block groups)`: tables of one row, behind them the sum of each group."""
    pointer = POINTER_OF[FLOAT]
    builder, function = _internal(module, "fill_tables", [pointer, pointer, INDEX, INDEX])
    x, tables, groups, block_groups = function.args
    sums = builder.gep(tables, [builder.mul(block_groups, index(shape.group_tables))])
    group_numbers = WORD_TABLES * shape.group_words

    def rounded_group(number: Value, _: list[Value]) -> list[Value]:
        place = builder.add(builder.mul(block_groups, index(shape.group_tables)), number)
        fill_rounded_group(builder, shape, x, tables, number, (place, builder.add(place, block_groups)))
        return []

    def group(number: Value, _: list[Value]) -> list[Value]:
        """Multiply by one group."""
        begin = builder.mul(number, index(group_numbers))

        def nibble(offset: Value, totals: list[Value]) -> list[Value]:
            place = builder.add(begin, offset)
            table = subset_sums(builder, x, builder.mul(place, index(4)))
            store(builder, table, tables, builder.mul(place, index(ENTRIES)))
            # The same additions in the same order as those of a row with all bits set, so that both round alike.
            return [builder.fadd(totals[0], builder.extract_element(table, ir.Constant(WORD, ENTRIES - 1)))]

        zero = ir.Constant(FLOAT, 0.0)
        (total,) = for_range(builder, index(0), index(group_numbers), index(1), [zero], nibble)
        store(builder, total, sums, number)
        return []

    for_range(builder, index(0), groups, index(1), [], rounded_group if shape.rounded else group)
    builder.ret_void()
    return function


def _add_multiply(module: Any, shape: TileShape, count: int, tiles: int) -> Any:
    """Add the product of `count` activation rows with row tiles first to last, over groups start to end."""
    floats, words_kind = POINTER_OF[FLOAT], POINTER_OF[WORD]
    kinds = [words_kind, floats, floats, *[INDEX] * 8]
    builder, function = _internal(module, f"multiply_{count}", kinds)
    words, tables, y, start, end, first, last, groups, block_groups, stride, y_stride = function.args
    row_words = builder.mul(groups, index(shape.tile_words))
    starts = [builder.mul(stride, index(number)) for number in range(count)]
    sums = builder.mul(block_groups, index(shape.group_tables))

    def several(at_once: int, tile: Value) -> None:
        """Multiply by several tiles at once."""
        numbers = [builder.add(tile, index(number)) for number in range(at_once)]
        bases = [builder.gep(words, [builder.mul(number, row_words)]) for number in numbers]
        y_places = [
            [builder.add(builder.mul(number, index(LANES)), builder.mul(y_stride, index(row))) for number in numbers]
            for row in range(count)
        ]
        held = [load(builder, y, place, FLOATS) for row in y_places for place in row]

        def group(number: Value, totals: list[Value]) -> list[Value]:
            """Multiply by one group."""
            offset = builder.mul(number, index(shape.tile_words))
            local = builder.sub(number, start)
            pointers = [builder.gep(base, [offset]) for base in bases]
            table_offsets = [builder.add(each, builder.mul(local, index(shape.group_tables))) for each in starts]
            sum_offsets = [builder.add(each, builder.add(sums, local)) for each in starts]
            places = (table_offsets, sum_offsets, [builder.add(each, block_groups) for each in sum_offsets])
            return _group_product(builder, shape, pointers, tables, places, totals)

        results = for_range(builder, start, end, index(1), held, group)
        for value, place in zip(results, [place for row in y_places for place in row], strict=True):
            store(builder, value, y, place)

    whole = builder.add(first, builder.mul(builder.sdiv(builder.sub(last, first), index(tiles)), index(tiles)))

    def many(tile: Value, _: list[Value]) -> list[Value]:
        several(tiles, tile)
        return []

    def one(tile: Value, _: list[Value]) -> list[Value]:
        several(1, tile)
        return []

    for_range(builder, first, whole, index(tiles), [], many)
    if tiles > 1:
        for_range(builder, whole, last, index(1), [], one)
    builder.ret_void()
    return function


def _group_product(
    builder: Builder,
    shape: TileShape,
    pointers: list[Value],
    tables: Value,
    places: tuple[list[Value], list[Value], list[Value]],
    totals: list[Value],
) -> list[Value]:
    """Emit one group of columns for several tiles and activation rows; totals are ordered [activation row, tile].

    `places` says for each activation row where its tables, its sum and the scale of its tables are.
    """
    lookup = lookup_of(shape.instruction_set)
    table_offsets, sum_offsets, scale_offsets = places
    sums = [same_words(0) if shape.rounded else same_floats(0.0)] * (len(totals) * shape.planes)

    def word(number: Value, partial: list[Value]) -> list[Value]:
        if shape.rounded:
            return rounded_word_product(builder, shape, number, pointers, tables, table_offsets, partial)
        return _word_product(builder, shape, lookup, number, pointers, tables, table_offsets, partial)

    if shape.group_words <= UNROLLED_WORDS:
        for number in range(shape.group_words):
            sums = word(index(number), sums)
    else:
        sums = for_range(builder, index(0), index(shape.group_words), index(1), sums, word)
    scales = [[shape.scales(builder, tile, plane) for plane in range(shape.planes)] for tile in pointers]
    results = []
    for position, total in enumerate(totals):
        row, tile = divmod(position, len(pointers))
        for plane in range(shape.planes):
            scale, partial = scales[tile][plane], sums[position * shape.planes + plane]
            if shape.rounded:
                part = rounded_group_sum(builder, tables, scale_offsets[row], scale, partial)
                total = builder.fadd(total, part)
            else:
                total = multiply_add(builder, scale, partial, total)
        if shape.has_offsets:
            group_sum = broadcast(builder, load(builder, tables, sum_offsets[row], FLOAT))
            total = multiply_add(builder, shape.scales(builder, pointers[tile], shape.planes), group_sum, total)
        results.append(total)
    return results


def _word_product(
    builder: Builder,
    shape: TileShape,
    lookup: Lookup,
    number: Value,
    pointers: list[Value],
    tables: Value,
    table_offsets: list[Value],
    sums: list[Value],
) -> list[Value]:
    """Emit 32 columns: eight look-ups for each tile, plane and activation row."""
    sums = list(sums)
    words = shape.words(builder, pointers, number)
    for nibble in range(WORD_TABLES):
        chosen = [lookup.nibbles(builder, each, nibble) for each in words]
        for row, begin in enumerate(table_offsets):
            place = builder.add(builder.mul(number, index(WORD_TABLES)), index(nibble))
            table = lookup.table(builder, tables, builder.add(begin, builder.mul(place, index(ENTRIES))))
            for each, nibbles in enumerate(chosen):
                position = row * len(words) + each
                sums[position] = builder.fadd(sums[position], lookup.pick(builder, table, nibbles))
    return sums
