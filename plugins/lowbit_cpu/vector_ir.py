"""The vocabulary of the generated code: loops, vectors of sixteen rows, arguments, shares of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch
from llvmlite import ir

from lowbit import RowTiles
from lowbit_cpu.instruction_sets import InstructionSet
from lowbit_cpu.jit import PARALLEL, RUN

LANES = RowTiles.tile_rows
BYTE = ir.IntType(8)
SHORT = ir.IntType(16)
WORD = ir.IntType(32)
INDEX = ir.IntType(64)
FLOAT = ir.FloatType()
WORDS = ir.VectorType(WORD, LANES)
FLOATS = ir.VectorType(FLOAT, LANES)
SHORTS = ir.VectorType(SHORT, LANES)
HALVES = ir.VectorType(ir.HalfType(), LANES)
POINTER_OF = {BYTE: BYTE.as_pointer(), WORD: WORD.as_pointer(), FLOAT: FLOAT.as_pointer(), INDEX: INDEX.as_pointer()}
Value = Any
Builder = Any


def index(value: int) -> Value:
    """Return a 64-bit constant."""
    return ir.Constant(INDEX, value)


def same_words(value: int) -> Value:
    """Return sixteen times the same 32-bit constant."""
    return ir.Constant(WORDS, [ir.Constant(WORD, value)] * LANES)


def same_floats(value: float) -> Value:
    """Return sixteen times the same float32 constant."""
    return ir.Constant(FLOATS, [ir.Constant(FLOAT, value)] * LANES)


def broadcast(builder: Builder, scalar: Value) -> Value:
    """Return sixteen copies of a scalar float."""
    first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), scalar, ir.Constant(WORD, 0))
    mask = ir.Constant(WORDS, [ir.Constant(WORD, 0)] * LANES)
    return builder.shuffle_vector(first, ir.Constant(FLOATS, ir.Undefined), mask)


def load(builder: Builder, pointer: Value, offset: Value, kind: Any) -> Value:
    """Load a value of any alignment, `offset` elements behind `pointer`."""
    place = builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())
    value = builder.load(place)
    value.align = 2 if kind in (SHORTS, HALVES) else 1 if kind is BYTE else 4
    return value


def store(builder: Builder, value: Value, pointer: Value, offset: Value) -> None:
    """Store a value of 32-bit elements, `offset` elements behind `pointer`."""
    place = builder.bitcast(builder.gep(pointer, [offset]), value.type.as_pointer())
    builder.store(value, place).align = 4


def intrinsic(builder: Builder, name: str, result: Any, arguments: Sequence[Value]) -> Value:
    """Call an LLVM intrinsic, declaring it where it is new to the module."""
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(result, [each.type for each in arguments]), name)
    return builder.call(function, arguments)


def multiply_add(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """Return a * b + c, fused where the processor can."""
    return intrinsic(builder, "llvm.fmuladd.v16f32", FLOATS, [a, b, c])


def smaller(builder: Builder, a: Value, b: Value) -> Value:
    """Return the smaller of two indices."""
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def for_range(
    builder: Builder,
    start: Value,
    end: Value,
    step: Value,
    carried: Sequence[Value],
    body: Callable[[Value, list[Value]], list[Value]],
) -> list[Value]:
    """Emit `for i in range(start, end, step)`.

    Args:
        builder: Stands behind the loop afterwards.
        start: First index.
        end: Bound.
        step: Positive.
        carried: Values that an iteration hands to the next.
        body: Emits an iteration from its index and the carried values; returns them anew.

    Returns:
        The carried values after the loop.
    """
    before = builder.block
    inside = builder.append_basic_block("loop")
    after = builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", start, end), inside, after)
    builder.position_at_end(inside)
    counter = builder.phi(INDEX)
    counter.add_incoming(start, before)
    held = [builder.phi(value.type) for value in carried]
    for phi, value in zip(held, carried, strict=True):
        phi.add_incoming(value, before)
    results = body(counter, list(held))
    following = builder.add(counter, step)
    last = builder.block
    counter.add_incoming(following, last)
    for phi, value in zip(held, results, strict=True):
        phi.add_incoming(value, last)
    builder.cbranch(builder.icmp_signed("<", following, end), inside, after)
    builder.position_at_end(after)
    finals = [builder.phi(value.type) for value in carried]
    for phi, value, initial in zip(finals, results, carried, strict=True):
        phi.add_incoming(value, last)
        phi.add_incoming(initial, before)
    return finals


def load_scales(builder: Builder, words: Value, offset: Value, dtype: torch.dtype, isa: InstructionSet) -> Value:
    """Load sixteen scales that begin `offset` words behind `words`, as float32."""
    if dtype == torch.float32:
        return load(builder, words, offset, FLOATS)
    if dtype == torch.float16 and isa is not InstructionSet.PORTABLE:
        return builder.fpext(load(builder, words, offset, HALVES), FLOATS)
    bits = builder.zext(load(builder, words, offset, SHORTS), WORDS)
    if dtype == torch.bfloat16:
        return builder.bitcast(builder.shl(bits, same_words(16)), FLOATS)
    # Not every processor converts halves: shift the exponent into place, then correct its bias of 15 to 127.
    magnitude = builder.shl(builder.and_(bits, same_words(0x7FFF)), same_words(13))
    scaled = builder.fmul(builder.bitcast(magnitude, FLOATS), same_floats(2.0**112))
    sign = builder.shl(builder.and_(bits, same_words(0x8000)), same_words(16))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, WORDS), sign), FLOATS)


class Arguments:
    """The array of 64-bit integers that a generated function gets: addresses and sizes, by an enumeration.

    Args:
        builder: Emits the loads.
        array: Pointer to the array.
        kinds: Element type of what an entry points to, for the entries that are addresses.
    """

    def __init__(self, builder: Builder, array: Value, kinds: dict[IntEnum, Any]) -> None:
        self._builder = builder
        self._array = array
        self._kinds = kinds

    def __getitem__(self, name: IntEnum) -> Value:
        """Load an entry, as an index or as a pointer."""
        value = load(self._builder, self._array, index(int(name)), INDEX)
        return self._builder.inttoptr(value, POINTER_OF[self._kinds[name]]) if name in self._kinds else value


def new_run(module: Any) -> tuple[Builder, Value, Value, Value]:
    """Begin `run(arguments, share, shares)`; returns a builder inside it and the three parameters."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER_OF[INDEX], INDEX, INDEX])
    function = ir.Function(module, kind, RUN)
    array, share, shares = function.args
    return ir.IRBuilder(function.append_basic_block("entry")), array, share, shares


def add_parallel(module: Any, thread_number: IntEnum, thread_count: IntEnum) -> None:
    """Add `parallel(arguments)`, which asks OpenMP for its share and calls `run`.

    Args:
        module: Already has `run`.
        thread_number: Entry with the address of `omp_get_thread_num`.
        thread_count: Entry with the address of `omp_get_num_threads`.
    """
    run = module.globals[RUN]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER_OF[INDEX]]), PARALLEL)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    (array,) = function.args
    asking = ir.FunctionType(WORD, []).as_pointer()

    def ask(entry: IntEnum) -> Value:
        address = load(builder, array, index(int(entry)), INDEX)
        return builder.sext(builder.call(builder.inttoptr(address, asking), []), INDEX)

    builder.call(run, [array, ask(thread_number), ask(thread_count)])
    builder.ret_void()


def share_bounds(builder: Builder, units: Value, share: Value, shares: Value) -> tuple[Value, Value]:
    """Return where a thread's share of `units` begins and ends."""
    first = builder.sdiv(builder.mul(units, share), shares)
    last = builder.sdiv(builder.mul(units, builder.add(share, index(1))), shares)
    return first, last
