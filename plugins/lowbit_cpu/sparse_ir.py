"""Products with single weights on a grid of their row, as LLVM modules."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto
from typing import Any

from llvmlite import ir

from lowbit_cpu.vector_ir import (
    BYTE,
    FLOAT,
    FLOATS,
    INDEX,
    LANES,
    WORD,
    WORDS,
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
    share_bounds,
    store,
)

ACCUMULATORS = 4


class SparseArgument(IntEnum):
    """What the product is told; addresses first."""

    THREAD_NUMBER = 0
    THREAD_COUNT = auto()
    ROW_STARTS = auto()
    COLUMNS = auto()
    CODES = auto()
    SCALES = auto()
    ZERO_POINTS = auto()
    X = auto()
    Y = auto()
    ROWS = auto()
    X_STRIDE = auto()
    BATCHES = auto()


POINTERS: dict[IntEnum, Any] = {
    SparseArgument.ROW_STARTS: WORD,
    SparseArgument.COLUMNS: WORD,
    SparseArgument.CODES: BYTE,
    SparseArgument.SCALES: FLOAT,
    SparseArgument.ZERO_POINTS: FLOAT,
    SparseArgument.X: FLOAT,
    SparseArgument.Y: FLOAT,
}
Named = dict[SparseArgument, Value]


def sparse_module(batched: bool) -> Any:
    """Return the module of `run` and `parallel` for sparse weights.

    Args:
        batched: Whether activations lie as x[columns, batches * 16], y as [rows, batches * 16]; else x is one row of
            activations, and y is [rows].
    """
    module = ir.Module("sparse_product")
    builder, array, share, shares = new_run(module)
    arguments = Arguments(builder, array, POINTERS)
    named = {name: arguments[name] for name in list(SparseArgument)[2:]}
    first, last = share_bounds(builder, named[SparseArgument.ROWS], share, shares)

    def row(number: Value, _: list[Value]) -> list[Value]:
        """Multiply by one row."""
        starts = named[SparseArgument.ROW_STARTS]
        begin = builder.sext(load(builder, starts, number, WORD), INDEX)
        end = builder.sext(load(builder, starts, builder.add(number, index(1)), WORD), INDEX)
        scale = load(builder, named[SparseArgument.SCALES], number, FLOAT)
        zero_point = load(builder, named[SparseArgument.ZERO_POINTS], number, FLOAT)
        (_batched_row if batched else _single_row)(builder, named, number, (begin, end), (scale, zero_point))
        return []

    for_range(builder, first, last, index(1), [], row)
    builder.ret_void()
    add_parallel(module, SparseArgument.THREAD_NUMBER, SparseArgument.THREAD_COUNT)
    return module


def _sixteen_weights(builder: Builder, named: Named, entry: Value, grid: tuple[Value, Value]) -> Value:
    """Decode sixteen entries: scale * (code - zero point), rounded as the format says."""
    codes = load(builder, named[SparseArgument.CODES], entry, ir.VectorType(BYTE, LANES))
    numbers = builder.uitofp(builder.zext(codes, WORDS), FLOATS)
    scale, zero_point = (broadcast(builder, each) for each in grid)
    return builder.fmul(scale, builder.fsub(numbers, zero_point))


def _one_weight(builder: Builder, named: Named, entry: Value, grid: tuple[Value, Value]) -> Value:
    code = load(builder, named[SparseArgument.CODES], entry, BYTE)
    return builder.fmul(grid[0], builder.fsub(builder.uitofp(code, FLOAT), grid[1]))


def _column(builder: Builder, named: Named, entry: Value) -> Value:
    return builder.sext(load(builder, named[SparseArgument.COLUMNS], entry, WORD), INDEX)


def _entries(
    builder: Builder,
    bounds: tuple[Value, Value],
    carried: list[Value],
    sixteen: Callable[[Value, list[Value]], list[Value]],
    one: Callable[[Value, list[Value]], list[Value]],
) -> list[Value]:
    """Emit the loop over entries, sixteen at a time and then one at a time."""
    begin, end = bounds
    count = builder.sdiv(builder.sub(end, begin), index(LANES))
    whole = builder.add(begin, builder.mul(count, index(LANES)))
    carried = for_range(builder, begin, whole, index(LANES), carried, sixteen)
    return for_range(builder, whole, end, index(1), carried, one)


def _single_row(
    builder: Builder, named: Named, number: Value, bounds: tuple[Value, Value], grid: tuple[Value, Value]
) -> None:
    def sixteen(entry: Value, sums: list[Value]) -> list[Value]:
        """Take the next sixteen."""
        gathered = same_floats(0.0)
        for lane in range(LANES):
            column = _column(builder, named, builder.add(entry, index(lane)))
            value = load(builder, named[SparseArgument.X], column, FLOAT)
            gathered = builder.insert_element(gathered, value, ir.Constant(WORD, lane))
        weights = _sixteen_weights(builder, named, entry, grid)
        return [multiply_add(builder, weights, gathered, sums[0]), sums[1]]

    def one(entry: Value, sums: list[Value]) -> list[Value]:
        value = load(builder, named[SparseArgument.X], _column(builder, named, entry), FLOAT)
        product = builder.fmul(_one_weight(builder, named, entry, grid), value)
        return [sums[0], builder.fadd(sums[1], product)]

    lanes, total = _entries(builder, bounds, [same_floats(0.0), ir.Constant(FLOAT, 0.0)], sixteen, one)
    for lane in range(LANES):
        total = builder.fadd(total, builder.extract_element(lanes, ir.Constant(WORD, lane)))
    store(builder, total, named[SparseArgument.Y], number)


def _batched_row(
    builder: Builder, named: Named, number: Value, bounds: tuple[Value, Value], grid: tuple[Value, Value]
) -> None:
    stride = named[SparseArgument.X_STRIDE]

    def batch(each: Value, _: list[Value]) -> list[Value]:
        """Multiply some rows of activations."""
        offset = builder.mul(each, index(LANES))

        def activations(entry: Value) -> Value:
            place = builder.add(builder.mul(_column(builder, named, entry), stride), offset)
            return load(builder, named[SparseArgument.X], place, FLOATS)

        def sixteen(entry: Value, sums: list[Value]) -> list[Value]:
            """Take the next sixteen."""
            sums = list(sums)
            weights = _sixteen_weights(builder, named, entry, grid)
            for lane in range(LANES):
                weight = broadcast(builder, builder.extract_element(weights, ir.Constant(WORD, lane)))
                x = activations(builder.add(entry, index(lane)))
                sums[lane % ACCUMULATORS] = multiply_add(builder, weight, x, sums[lane % ACCUMULATORS])
            return sums

        def one(entry: Value, sums: list[Value]) -> list[Value]:
            weight = broadcast(builder, _one_weight(builder, named, entry, grid))
            return [multiply_add(builder, weight, activations(entry), sums[0]), *sums[1:]]

        sums = _entries(builder, bounds, [same_floats(0.0)] * ACCUMULATORS, sixteen, one)
        total = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
        store(builder, total, named[SparseArgument.Y], builder.add(builder.mul(number, stride), offset))
        return []

    for_range(builder, index(0), named[SparseArgument.BATCHES], index(1), [], batch)
