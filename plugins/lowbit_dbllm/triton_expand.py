"""Bits to numbers in registers: what both Triton kernels share."""

# ruff: noqa: N803, N806 -- compile-time constants are capitals, as everywhere in Triton.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

# Columns of a step in the order in which expanded bits come out: a permutation of the sum's terms, which the
# activations follow by `reorder`. Column = 32 * word + 16 * half + span * part + 2 * pair + parity; the expanded order
# is [pair, word, part, parity, half], fastest last. Both halves of one shifted 32-bit word are then two neighbouring
# 16-bit numbers, no lane of a tensor core's operand moves a bit to another, and every shift is by a constant or by an
# amount that a lane computes once.


@triton.jit
def expand_bits(
    words: tl.tensor, BATCH: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, DTYPE: tl.constexpr
) -> tl.tensor:
    """Turn words [batch, rows, words] into {0, 2} of a 16-bit floating type, [batch, rows, 32 * words].

    Bit 14 alone is the number 2 in float16 (0x4000) and in bfloat16 alike, so a shift and a mask make two numbers at
    once: one instruction a weight, and no conversion from integers, which runs at a quarter of the rate. The factor 2
    is exact and is taken out of the sum at the end.
    """
    PARTS: tl.constexpr = 4 // WORDS
    SPAN: tl.constexpr = 16 // PARTS
    part = tl.arange(0, PARTS)[None, None, None, None, :, None]
    index = tl.arange(0, SPAN // 2)[:, None] * 2 + tl.arange(0, 2)[None, :]  # [pair, parity]
    left = (SPAN - 2 - index)[None, None, :, None, None, :]
    top = words[:, :, None, :, None, None] << (16 - SPAN * (part + 1))  # the last bit of the part at 15 and at 31
    pairs = tl.where(left < 0, top >> 1, top << left) & 0x40004000  # [batch, rows, pair, word, part, parity]
    both = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))
    return both.reshape(BATCH, ROWS, 32 * WORDS).to(DTYPE, bitcast=True)


@triton.jit
def expand_levels(
    words1: tl.tensor,
    words2: tl.tensor,
    alpha1: tl.tensor,
    alpha2: tl.tensor,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Turn words [rows, words] of both planes and scales float32 [rows] into weights [rows, 32 * words].

    A weight is 0, alpha1, alpha2 or their sum. In a 16-bit type the four are rounded once a row and group and then
    chosen two at a time by masks, so that each weight is the dequantized one, rounded once.
    """
    PARTS: tl.constexpr = 4 // WORDS
    SPAN: tl.constexpr = 16 // PARTS
    part = tl.arange(0, PARTS)[None, None, None, :, None]
    index = tl.arange(0, SPAN // 2)[:, None] * 2 + tl.arange(0, 2)[None, :]
    index = index[None, :, None, None, :]
    low1 = words1[:, None, :, None, None] >> (SPAN * part)
    low2 = words2[:, None, :, None, None] >> (SPAN * part)
    if DTYPE == tl.float32:  # noqa: SIM300
        half = (tl.arange(0, 2) * 16)[None, None, None, None, None, :]
        bit1 = ((low1 >> index)[:, :, :, :, :, None] >> half) & 1
        bit2 = ((low2 >> index)[:, :, :, :, :, None] >> half) & 1
        first = alpha1[:, None, None, None, None, None]
        second = alpha2[:, None, None, None, None, None]
        values = tl.where(bit1 != 0, first, 0.0) + tl.where(bit2 != 0, second, 0.0)
        weights = values.reshape(ROWS, 32 * WORDS)
    else:
        first = _doubled(alpha1, DTYPE)
        second = _doubled(alpha2, DTYPE)
        # masks & first ^ masks & second is right but where both bits are set; this difference then corrects it
        both = first ^ second ^ _doubled(alpha1 + alpha2, DTYPE)
        mask1 = ((low1 >> index) & 0x00010001) * 0xFFFF
        mask2 = ((low2 >> index) & 0x00010001) * 0xFFFF
        pairs = (mask1 & first) ^ (mask2 & (second ^ (mask1 & both)))
        halves = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))
        weights = halves.reshape(ROWS, 32 * WORDS).to(DTYPE, bitcast=True)
    return weights


@triton.jit
def _doubled(values: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """Return both halves of an int32 filled with the bits of the 16-bit number, [rows, 1, 1, 1, 1]."""
    bits = values.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return (bits | (bits << 16))[:, None, None, None, None]


@triton.jit
def reorder(x: tl.tensor, BATCH: tl.constexpr, N: tl.constexpr, WORDS: tl.constexpr) -> tl.tensor:
    """Bring activations [batch, n, 32 * words] into the order of expanded bits, [batch, 32 * words, n]."""
    PARTS: tl.constexpr = 4 // WORDS
    SPAN: tl.constexpr = 16 // PARTS
    split = x.reshape(BATCH, N, WORDS, 2, PARTS, SPAN // 2, 2)
    return split.permute(0, 5, 2, 4, 6, 3, 1).reshape(BATCH, 32 * WORDS, N)


@triton.jit
def exact_dot(left: tl.tensor, right: tl.tensor, INTERPRET: tl.constexpr) -> tl.tensor:
    """Return left @ right, accumulated in float32."""
    if INTERPRET:
        # The interpreter multiplies the bits of bfloat16 as if they were integers.
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")
