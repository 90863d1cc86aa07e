"""The operators `lowbit_cpu::*`: traceable, differentiable, and right on every device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowbit import RowTiles, SparseCodes
from lowbit_cpu.argument_checks import (
    check_bias,
    check_row_tiles_arguments,
    check_sparse_arguments,
    check_sparse_ranges,
    check_width,
    known_words_shape,
    words_shape,
)
from lowbit_cpu.expanded_product import dense_weight, expanded_product, expansion_pays, transposed_product
from lowbit_cpu.instruction_sets import InstructionSet, missing_for_rounded
from lowbit_cpu.jit import missing_compiler
from lowbit_cpu.row_tiles_product import default_instruction_set, lookup_product
from lowbit_cpu.sparse_product import reference_sparse_product, sparse_product, transposed_sparse_product

AS_IT_IS = nullcontext()


@torch.library.custom_op("lowbit_cpu::row_tiles_linear", mutates_args=())
def row_tiles_linear(
    x: Tensor,
    words: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    group_size: int,
    planes: int,
    has_offsets: bool,
    scale_dtype: torch.dtype,
) -> Tensor:
    """Return x @ W^T + bias with W in row tiles, accumulated in float32.

    Args:
        x: [..., columns], floating point.
        words: The tiles, int32 [row tiles, groups, tile words].
        bias: [rows] or `None`.
        rows: Rows of W.
        columns: Columns of W.
        group_size: Columns a group.
        planes: Number of planes.
        has_offsets: Whether there are offsets.
        scale_dtype: Dtype of the scales.

    Returns:
        [..., rows] with the dtype of `x`, under autocast too.

    Raises:
        ValueError: A size is not positive, or a tensor has another shape, dtype or device than the sizes and `x` say.
    """
    expected = known_words_shape(rows, columns, group_size, planes, has_offsets, scale_dtype)
    tiles = RowTiles(words, rows, columns, group_size, planes, has_offsets, scale_dtype)
    return _product(x, tiles, bias, expected, _exact_product)


@torch.library.custom_op("lowbit_cpu::row_tiles_linear_rounded", mutates_args=())
def row_tiles_linear_rounded(
    x: Tensor,
    words: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    group_size: int,
    planes: int,
    has_offsets: bool,
    scale_dtype: torch.dtype,
) -> Tensor:
    """Return about x @ W^T + bias: sums of four activations are rounded to eight bits, with a scale for each group.

    The result is off by about 1 % of its norm for normally distributed activations. Where the processor lacks the
    instructions, and for gradients, it is exact. Arguments and errors are those of `row_tiles_linear`; an activation
    that is not finite makes its whole row of the result NaN.
    """
    if not _compiled_on(x) or missing_for_rounded():
        exact: Tensor = row_tiles_linear(x, words, bias, rows, columns, group_size, planes, has_offsets, scale_dtype)
        return exact
    expected = known_words_shape(rows, columns, group_size, planes, has_offsets, scale_dtype)
    tiles = RowTiles(words, rows, columns, group_size, planes, has_offsets, scale_dtype)
    return _product(x, tiles, bias, expected, _rounded_product)


def _product(
    x: Tensor,
    tiles: RowTiles,
    bias: Tensor | None,
    expected: tuple[int, int, int],
    multiply: Callable[[Tensor, RowTiles, Tensor | None], Tensor],
) -> Tensor:
    """Check the arguments and multiply; `multiply` takes activations [rows, columns] and contiguous tiles."""
    check_row_tiles_arguments(x, tiles.columns, tiles.words, expected)
    check_bias(x, bias, tiles.rows)
    flat = x if x.ndim == 2 else x.reshape(x.numel() // tiles.columns, tiles.columns)
    if not flat.shape[0]:
        return x.new_empty(*x.shape[:-1], tiles.rows)
    if not tiles.words.is_contiguous():
        tiles = replace(tiles, words=tiles.words.contiguous())
    with _without_autocast(x):
        return _shaped(multiply(flat, tiles, bias), x, tiles.rows)


def _exact_product(flat: Tensor, tiles: RowTiles, bias: Tensor | None) -> Tensor:
    if not _compiled_on(flat):
        result = flat.float() @ dense_weight(tiles).T
        return result if bias is None else result + bias.float()
    product = expanded_product if expansion_pays(flat.shape[0], default_instruction_set()) else lookup_product
    return product(flat, tiles, bias)


def _rounded_product(flat: Tensor, tiles: RowTiles, bias: Tensor | None) -> Tensor:
    return lookup_product(flat, tiles, bias, InstructionSet.AVX512_ROUNDED)


@torch.library.custom_op("lowbit_cpu::row_tiles_transposed", mutates_args=())
def row_tiles_transposed(
    gradient: Tensor,
    words: Tensor,
    rows: int,
    columns: int,
    group_size: int,
    planes: int,
    has_offsets: bool,
    scale_dtype: torch.dtype,
) -> Tensor:
    """Return gradient @ W with W in row tiles: [..., columns] from [..., rows]; errors as of `row_tiles_linear`."""
    expected = known_words_shape(rows, columns, group_size, planes, has_offsets, scale_dtype)
    check_row_tiles_arguments(gradient, rows, words, expected)
    tiles = RowTiles(words.contiguous(), rows, columns, group_size, planes, has_offsets, scale_dtype)
    flat = gradient.reshape(gradient.shape[:-1].numel(), rows)
    with _without_autocast(gradient):
        compiled = _compiled_on(gradient)
        result = transposed_product(flat, tiles) if compiled else flat.float() @ dense_weight(tiles)
        return _shaped(result, gradient, columns)


@torch.library.custom_op("lowbit_cpu::sparse_linear", mutates_args=())
def sparse_linear(
    x: Tensor,
    row_starts: Tensor,
    columns: Tensor,
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    ranges_checked: bool = False,
) -> Tensor:
    """Return x @ S^T, accumulated in float32, with S[r, columns[e]] = scales[r] * (codes[e] - zero_points[r]).

    Args:
        x: [..., in], floating point.
        row_starts: Where each row's entries begin, int32 [out + 1]; ascending from 0 to the number of entries.
        columns: int32 [entries], each less than the last dimension of `x`.
        codes: uint8 [entries].
        scales: Floating-point [out].
        zero_points: Floating-point [out].
        ranges_checked: Whether the caller has already made sure of the values of `row_starts` and `columns`; a wrong
            value then reads foreign memory. Otherwise every call looks at all of them.

    Returns:
        [..., out] with the dtype of `x`, under autocast too.

    Raises:
        ValueError: A tensor has another shape, dtype, device or range of values.
    """
    sparse = SparseCodes(row_starts, columns, codes, scales, zero_points)
    check_sparse_arguments(x, sparse)
    if not ranges_checked:
        check_sparse_ranges(sparse, x.shape[-1])
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    if not flat.shape[0]:
        return x.new_empty(*x.shape[:-1], len(scales))
    with _without_autocast(x):
        result = sparse_product(flat, sparse) if _compiled_on(x) else reference_sparse_product(flat, sparse)
        return _shaped(result, x, len(scales))


@torch.library.custom_op("lowbit_cpu::sparse_transposed", mutates_args=())
def sparse_transposed(
    gradient: Tensor,
    row_starts: Tensor,
    columns: Tensor,
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    length: int,
    ranges_checked: bool = False,
) -> Tensor:
    """Return gradient @ S: [..., length] from [..., out]; arguments and errors as of `sparse_linear`."""
    sparse = SparseCodes(row_starts, columns, codes, scales, zero_points)
    check_sparse_arguments(gradient, sparse)
    check_width(gradient, len(scales))
    if not ranges_checked:
        check_sparse_ranges(sparse, length)
    flat = gradient.reshape(gradient.shape[:-1].numel(), gradient.shape[-1])
    with _without_autocast(gradient):
        return _shaped(transposed_sparse_product(flat, sparse, length), gradient, length)


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Keep autocast from narrowing the products inside an operator, whose result's dtype is promised to tracing."""
    kind = "cpu" if x.is_cpu else x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else AS_IT_IS


def _compiled_on(x: Tensor) -> bool:
    return x.is_cpu and not missing_compiler()


def _shaped(result: Tensor, like: Tensor, width: int) -> Tensor:
    if like.ndim == 2 and result.dtype == like.dtype and result.is_contiguous():
        return result
    return result.to(like.dtype).contiguous().view(*like.shape[:-1], width)


@row_tiles_linear.register_fake
@row_tiles_linear_rounded.register_fake
def _(x: Tensor, words: Tensor, bias: Tensor | None, rows: int, columns: int, *shape: Any) -> Tensor:
    check_row_tiles_arguments(x, columns, words, words_shape(rows, columns, *shape))
    check_bias(x, bias, rows)
    return x.new_empty(*x.shape[:-1], rows)


@row_tiles_transposed.register_fake
def _(gradient: Tensor, words: Tensor, rows: int, columns: int, *shape: Any) -> Tensor:
    check_row_tiles_arguments(gradient, rows, words, words_shape(rows, columns, *shape))
    return gradient.new_empty(*gradient.shape[:-1], columns)


@sparse_linear.register_fake
def _(x: Tensor, *entries: Any) -> Tensor:
    sparse = SparseCodes(*entries[:5])
    check_sparse_arguments(x, sparse)
    return x.new_empty(*x.shape[:-1], sparse.scales.shape[0])


@sparse_transposed.register_fake
def _(gradient: Tensor, *entries: Any) -> Tensor:
    *tensors, length = entries[:6]
    sparse = SparseCodes(*tensors)
    check_sparse_arguments(gradient, sparse)
    check_width(gradient, sparse.scales.shape[0])
    return gradient.new_empty(*gradient.shape[:-1], length)


def _keep_tiles(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, words, bias, *shape = inputs
    ctx.save_for_backward(words)
    ctx.shape = shape
    ctx.bias_dtype = None if bias is None else bias.dtype


def _tiles_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (words,) = ctx.saved_tensors
    for_x = row_tiles_transposed(gradient, words, *ctx.shape) if ctx.needs_input_grad[0] else None
    for_bias = None
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        for_bias = gradient.float().reshape(gradient.shape[:-1].numel(), gradient.shape[-1]).sum(0).to(ctx.bias_dtype)
    return for_x, None, for_bias, *[None] * len(ctx.shape)


def _keep_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, words, *shape = inputs
    ctx.save_for_backward(words)
    ctx.shape = shape


def _transposed_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (words,) = ctx.saved_tensors
    return row_tiles_linear(gradient, words, None, *ctx.shape), None, *[None] * len(ctx.shape)


def _keep_sparse(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:6])
    ctx.length = inputs[0].shape[-1]


def _sparse_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    # The ranges were right in the forward product, and saved tensors may not change.
    return sparse_transposed(gradient, *ctx.saved_tensors, ctx.length, True), *[None] * 6


def _keep_sparse_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:6])


def _sparse_transposed_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return sparse_linear(gradient, *ctx.saved_tensors, True), *[None] * 7


row_tiles_linear.register_autograd(_tiles_gradient, setup_context=_keep_tiles)
row_tiles_linear_rounded.register_autograd(_tiles_gradient, setup_context=_keep_tiles)
row_tiles_transposed.register_autograd(_transposed_gradient, setup_context=_keep_transposed)
sparse_linear.register_autograd(_sparse_gradient, setup_context=_keep_sparse)
sparse_transposed.register_autograd(_sparse_transposed_gradient, setup_context=_keep_sparse_transposed)
