"""The Triton kernel for many rows of activations, as in prefill: weights are expanded in registers for tensor cores.

With many rows the multiplications are the bound, not the read. Two products with bits would need twice the tensor
cores' work of a dense product, so the two planes and scales first become one weight in the activations' type
(`expand_levels`), which is the dequantized weight rounded once. The work of expanding, some five instructions a weight,
is shared by all activation rows of a program. Weights are the first operand, which tensor cores take from registers;
activations go through shared memory, by asynchronous copies some iterations ahead.
"""

# ruff: noqa: N803, N806 -- compile-time constants are capitals, as everywhere in Triton.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from lowbit_dbllm.triton_expand import exact_dot, expand_levels, reorder


@triton.jit
def gemm_kernel(
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
    GROUP_WORDS: tl.constexpr,
    STEP_WORDS: tl.constexpr,
    SCALES_PER_WORD: tl.constexpr,
    TILES: tl.constexpr,
    N: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INTERPRET: tl.constexpr,
) -> None:
    """Multiply N rows of x [x_rows, columns] by the weights of `TILES` row tiles, into y [x_rows, rows]."""
    R: tl.constexpr = 16 * TILES
    K: tl.constexpr = 32 * STEP_WORDS
    PLANE: tl.constexpr = 16 * GROUP_WORDS
    TILE_WORDS: tl.constexpr = 2 * PLANE + 32 // SCALES_PER_WORD
    GROUP_STEPS: tl.constexpr = GROUP_WORDS // STEP_WORDS
    # Programs that differ in activations come one after another: they read the same words, from the second-level cache.
    block = tl.program_id(1)
    row = tl.arange(0, R)
    word = tl.arange(0, STEP_WORDS)
    k = tl.arange(0, K)
    n = tl.program_id(0) * N + tl.arange(0, N)
    tile = tl.minimum(block * TILES + row // 16, (rows + 15) // 16 - 1)
    first = tile.to(tl.int64) * groups * TILE_WORDS
    lane = row % 16
    words_of_row = words_ptr + (first + lane)[:, None] + word[None, :] * 16
    scales_of_row = scales_ptr + (first + 2 * PLANE) * SCALES_PER_WORD + lane
    x_of_row = x_ptr + n.to(tl.int64)[:, None] * x_stride
    sums = tl.zeros((R, N), tl.float32)
    for step in tl.range(0, groups * GROUP_STEPS, num_stages=STAGES):
        place = (step // GROUP_STEPS) * TILE_WORDS
        words_at = place + (step % GROUP_STEPS) * (16 * STEP_WORDS)
        words1 = tl.load(words_of_row + words_at)
        words2 = tl.load(words_of_row + words_at + PLANE)
        alpha1 = tl.load(scales_of_row + place * SCALES_PER_WORD).to(tl.float32)
        alpha2 = tl.load(scales_of_row + place * SCALES_PER_WORD + 16).to(tl.float32)
        column = step * K + k[None, :]
        x_mask = (n < x_rows)[:, None]
        if not WHOLE_COLUMNS:
            x_mask = x_mask & (column < columns)
        x = tl.load(x_of_row + column, mask=x_mask, other=0.0)  # [N, K]
        x = reorder(x.reshape(1, N, K), 1, N, STEP_WORDS).reshape(K, N)
        weights = expand_levels(words1, words2, alpha1, alpha2, R, STEP_WORDS, x_ptr.dtype.element_ty)
        sums += exact_dot(weights, x, INTERPRET)
    out = block * R + row
    if HAS_BIAS:
        sums += tl.load(bias_ptr + out, mask=out < rows, other=0.0).to(tl.float32)[:, None]
    y_of_row = y_ptr + n.to(tl.int64)[None, :] * rows
    tl.store(y_of_row + out[:, None], sums, mask=(n[None, :] < x_rows) & (out[:, None] < rows))
