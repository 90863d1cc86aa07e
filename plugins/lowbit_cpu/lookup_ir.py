"""Looking sixteen nibbles up in a table of sixteen numbers, for each instruction set.

Four columns of activations have sixteen subsets. A table holds the sum of each; the four bits that a row of a plane has
in these columns say which sum the row needs, so one look-up stands for four multiplications and additions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from llvmlite import ir

from lowbit_cpu.instruction_sets import InstructionSet
from lowbit_cpu.vector_ir import (
    FLOAT,
    FLOATS,
    LANES,
    WORD,
    WORDS,
    Builder,
    Value,
    broadcast,
    index,
    intrinsic,
    load,
    same_floats,
    same_words,
)

NIBBLE = 4
ENTRIES = 1 << NIBBLE


class Lookup(ABC):
    """Emits the steps of a look-up, split so that each is done once for all that share it."""

    @abstractmethod
    def table(self, builder: Builder, tables: Value, offset: Value) -> list[Value]:
        """Load a table; shared by all rows."""

    @abstractmethod
    def nibbles(self, builder: Builder, words: Value, number: int) -> list[Value]:
        """Bring nibble `number` of sixteen words into place; shared by all tables."""

    @abstractmethod
    def pick(self, builder: Builder, table: list[Value], nibbles: list[Value]) -> Value:
        """Return the sixteen sums that the nibbles choose."""


class Avx512Lookup(Lookup):
    """One permutation, which itself ignores all but the lowest four bits."""

    def table(self, builder: Builder, tables: Value, offset: Value) -> list[Value]:
        """Load a table into one register."""
        return [load(builder, tables, offset, FLOATS)]

    def nibbles(self, builder: Builder, words: Value, number: int) -> list[Value]:
        """Shift the nibble down."""
        return [builder.lshr(words, same_words(NIBBLE * number)) if number else words]

    def pick(self, builder: Builder, table: list[Value], nibbles: list[Value]) -> Value:
        """Permute."""
        return intrinsic(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, [table[0], nibbles[0]])


class Avx2Lookup(Lookup):
    """Two permutations by the lower three bits for each eight rows, and a choice by the fourth bit."""

    half_words = ir.VectorType(WORD, LANES // 2)
    half_floats = ir.VectorType(FLOAT, LANES // 2)

    def table(self, builder: Builder, tables: Value, offset: Value) -> list[Value]:
        """Load both halves of a table."""
        upper = builder.add(offset, index(LANES // 2))
        return [load(builder, tables, place, self.half_floats) for place in (offset, upper)]

    def nibbles(self, builder: Builder, words: Value, number: int) -> list[Value]:
        """Return for each eight rows the shifted words, and their fourth bits as signs."""
        down = builder.lshr(words, same_words(NIBBLE * number)) if number else words
        up = builder.shl(words, same_words(28 - NIBBLE * number)) if number < 7 else words
        return [self._half(builder, each, half) for half in (0, 1) for each in (down, up)]

    def pick(self, builder: Builder, table: list[Value], nibbles: list[Value]) -> Value:
        """Permute both halves of the table and choose."""
        parts = []
        for down, up in (nibbles[:2], nibbles[2:]):
            low, high = (intrinsic(builder, "llvm.x86.avx2.permps", self.half_floats, [half, down]) for half in table)
            signs = builder.bitcast(up, self.half_floats)
            parts.append(intrinsic(builder, "llvm.x86.avx.blendv.ps.256", self.half_floats, [low, high, signs]))
        everything = ir.Constant(WORDS, [ir.Constant(WORD, lane) for lane in range(LANES)])
        return builder.shuffle_vector(parts[0], parts[1], everything)

    def _half(self, builder: Builder, value: Value, half: int) -> Value:
        lanes = [ir.Constant(WORD, half * LANES // 2 + lane) for lane in range(LANES // 2)]
        return builder.shuffle_vector(value, ir.Constant(WORDS, ir.Undefined), ir.Constant(self.half_words, lanes))


class PortableLookup(Lookup):
    """Adds the table's four single columns where the bits are set; plain LLVM, for every processor."""

    def table(self, builder: Builder, tables: Value, offset: Value) -> list[Value]:
        """Load the entries of the single columns."""
        places = [builder.add(offset, index(1 << bit)) for bit in range(NIBBLE)]
        return [broadcast(builder, load(builder, tables, place, FLOAT)) for place in places]

    def nibbles(self, builder: Builder, words: Value, number: int) -> list[Value]:
        """Return a mask for each bit."""
        bits = [builder.and_(words, same_words(1 << (NIBBLE * number + bit))) for bit in range(NIBBLE)]
        return [builder.icmp_unsigned("!=", each, same_words(0)) for each in bits]

    def pick(self, builder: Builder, table: list[Value], nibbles: list[Value]) -> Value:
        """Add the chosen columns in the order in which tables are built."""
        chosen = [builder.select(mask, value, same_floats(0.0)) for mask, value in zip(nibbles, table, strict=True)]
        return builder.fadd(builder.fadd(chosen[0], chosen[1]), builder.fadd(chosen[2], chosen[3]))


def lookup_of(instruction_set: InstructionSet) -> Lookup:
    """Return the look-up of an instruction set."""
    kinds = {InstructionSet.AVX512: Avx512Lookup, InstructionSet.AVX2: Avx2Lookup}
    return kinds.get(instruction_set, PortableLookup)()


def subset_sums(builder: Builder, columns: Value, offset: Value) -> Value:
    """Return the table of four columns: entry e is the sum of the columns whose bits e has.

    Args:
        builder: Emits.
        columns: Pointer to float32 activations.
        offset: Index of the first of the four.
    """
    parts = []
    for bit in range(NIBBLE):
        value = broadcast(builder, load(builder, columns, builder.add(offset, index(bit)), FLOAT))
        lanes = [ir.Constant(ir.IntType(1), (entry >> bit) & 1) for entry in range(ENTRIES)]
        mask = ir.Constant(ir.VectorType(ir.IntType(1), ENTRIES), lanes)
        parts.append(builder.select(mask, value, same_floats(0.0)))
    return builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))
