"""The Triton kernel for 1 to 16 rows of activations: bound by the read of packed words, each of them read once.

Why it is written as it is, in numbers for 4096 x 4096 weights in groups of 64 on a card of 132 multiprocessors at
1.7 GHz and 3.35 TB/s: 5.2 MB of packed weight are read in 1.6 microseconds, in which the card can issue about 45
million lane instructions, for 33.5 million bits. A shift, a mask, a conversion and a multiplication a bit would take
three times too long. So bits become 16-bit operands of tensor cores, one instruction a bit (`expand_bits`), and the
tensor cores multiply and add; eight rows of activations cost what one costs, and sixteen little more. Compiled for
compute capability 9.0 the loop takes 1.6 to 2.3 instructions a bit, everything included, which keeps the issue slots
about as busy as the memory. These are counts of machine code (benchmarks/kernel_resources.py), not times.

- A tile of the layout (both planes and the scales of sixteen rows and one group) is contiguous, and so are the tiles of
  a row tile. The warps of a program take consecutive groups of the same rows, so that a program reads a stream;
  the words of one plane and bit position are 64-byte rows. `num_stages` asynchronous copies into shared memory keep
  several groups a warp in flight, and words come out of shared memory in the operand's layout.
- The sum over a group stays in the tensor core's accumulator; the scale multiplies it in float32 afterwards. Planes are
  exact in 16 bits and so is their product with an activation, so nothing but the order of float32 additions is lost.
- float32 activations are the exact sum of three bfloat16 numbers, each multiplied by the same expanded bits.
- Few row tiles leave multiprocessors idle: the input dimension is then split over programs as well. Partial sums go to
  a buffer that a second kernel adds up in a fixed order; atomic additions would make results differ between runs.
- Words of zeros are not skipped. With a share d of ones a word is zero with probability (1 - d)^32: 8e-8 at d = 0.4 and
  2e-13 at d = 0.6; even a share of 0.1 gives 3 %. Sixteen rows share an operand, which would have to be zero as a
  whole. The test would cost one instruction a word to save one word in ten million.
"""

# ruff: noqa: N803, N806 -- compile-time constants are capitals, as everywhere in Triton.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from lowbit_dbllm.triton_expand import exact_dot, expand_bits, reorder


@triton.jit
def gemv_kernel(
    x_ptr: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_rows: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    x_stride: tl.tensor,
    split_steps: tl.tensor,
    GROUP_WORDS: tl.constexpr,
    STEP_WORDS: tl.constexpr,
    SCALES_PER_WORD: tl.constexpr,
    TILES: tl.constexpr,
    SEGMENTS: tl.constexpr,
    N: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_STEPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    INTERPRET: tl.constexpr,
) -> None:
    """Multiply x [x_rows, columns] by the tiles of `TILES` row tiles, or by one part of their steps.

    A step is `STEP_WORDS` words a row; the program's warps share `SEGMENTS` steps an iteration. The result is
    y [x_rows, rows], or float32 [parts, x_rows, rows] of sums without bias if `PARTIAL`.
    """
    R: tl.constexpr = 16 * TILES
    K: tl.constexpr = 32 * STEP_WORDS
    PLANE: tl.constexpr = 16 * GROUP_WORDS
    TILE_WORDS: tl.constexpr = 2 * PLANE + 32 // SCALES_PER_WORD
    GROUP_STEPS: tl.constexpr = GROUP_WORDS // STEP_WORDS
    block = tl.program_id(0)
    part = tl.program_id(1)
    segment = tl.arange(0, SEGMENTS)
    row = tl.arange(0, R)
    word = tl.arange(0, STEP_WORDS)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    # The last program may have fewer row tiles: it reads the last one again and stores nothing of it.
    tile = tl.minimum(block * TILES + row // 16, (rows + 15) // 16 - 1)
    first = tile.to(tl.int64) * groups * TILE_WORDS  # beyond 2^31 words in the largest matrices
    lane = row % 16
    words_of_row = words_ptr + (first + lane)[None, :, None]
    scales_of_row = scales_ptr + ((first + 2 * PLANE) * SCALES_PER_WORD + lane)[None, :]
    begin = part * split_steps
    end = tl.minimum(begin + split_steps, groups * GROUP_STEPS)
    sums = tl.zeros((SEGMENTS, R, N), tl.float32)
    for start in tl.range(begin, end, SEGMENTS, num_stages=STAGES):
        step = start + segment
        group = step // GROUP_STEPS
        place = group * TILE_WORDS
        words_at = (place + (step % GROUP_STEPS) * (16 * STEP_WORDS))[:, None, None] + word[None, None, :] * 16
        scales_at = (place * SCALES_PER_WORD)[:, None]
        column = step[:, None, None] * K + k[None, None, :]
        x_mask = (n < x_rows)[None, :, None]
        if not WHOLE_COLUMNS:
            x_mask = x_mask & (column < columns)
        if WHOLE_STEPS:
            words1 = tl.load(words_of_row + words_at)
            words2 = tl.load(words_of_row + words_at + PLANE)
            alpha1 = tl.load(scales_of_row + scales_at)
            alpha2 = tl.load(scales_of_row + scales_at + 16)
        else:
            live = step < end
            x_mask = x_mask & live[:, None, None]
            words1 = tl.load(words_of_row + words_at, mask=live[:, None, None], other=0)
            words2 = tl.load(words_of_row + words_at + PLANE, mask=live[:, None, None], other=0)
            alpha1 = tl.load(scales_of_row + scales_at, mask=live[:, None], other=0.0)
            alpha2 = tl.load(scales_of_row + scales_at + 16, mask=live[:, None], other=0.0)
        x = tl.load(x_ptr + n[None, :, None] * x_stride + column, mask=x_mask, other=0.0)  # [segments, N, K]
        x = reorder(x, SEGMENTS, N, STEP_WORDS)
        sums += alpha1.to(tl.float32)[:, :, None] * _bits_dot(words1, x, SEGMENTS, R, STEP_WORDS, INTERPRET)
        sums += alpha2.to(tl.float32)[:, :, None] * _bits_dot(words2, x, SEGMENTS, R, STEP_WORDS, INTERPRET)
    total = tl.sum(sums, 0) * 0.5  # [R, N]; expanded bits are 0 or 2
    out = block * R + row
    if HAS_BIAS:
        total += tl.load(bias_ptr + out, mask=out < rows, other=0.0).to(tl.float32)[:, None]
    if PARTIAL:
        y_ptr += part.to(tl.int64) * x_rows * rows
    tl.store(y_ptr + n[None, :] * rows + out[:, None], total, mask=(n[None, :] < x_rows) & (out[:, None] < rows))


@triton.jit
def _bits_dot(
    words: tl.tensor,
    x: tl.tensor,
    SEGMENTS: tl.constexpr,
    R: tl.constexpr,
    STEP_WORDS: tl.constexpr,
    INTERPRET: tl.constexpr,
) -> tl.tensor:
    """Return twice the sums of the activations x [segments, K, N] whose bit is set, float32 [segments, R, N]."""
    if x.dtype == tl.float32:
        bits = expand_bits(words, SEGMENTS, R, STEP_WORDS, tl.bfloat16)
        high = x.to(tl.bfloat16)
        rest = x - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        small = exact_dot(bits, low, INTERPRET) + exact_dot(bits, middle, INTERPRET)
        result = small + exact_dot(bits, high, INTERPRET)
    else:
        result = exact_dot(expand_bits(words, SEGMENTS, R, STEP_WORDS, x.dtype), x, INTERPRET)
    return result


@triton.jit
def reduce_kernel(
    sums_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    size: tl.tensor,
    rows: tl.tensor,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> None:
    """Add float32 sums [parts, size] in order, and the bias, into y [size] with size = x_rows * rows."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(sums_ptr + part * size + at, mask=mask, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + at % rows, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, total, mask=mask)
