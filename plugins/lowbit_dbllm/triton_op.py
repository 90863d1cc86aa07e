"""The dual-binary product as a custom operator: Triton on CUDA devices, the reference elsewhere, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit import RowTiles, from_row_tiles
from lowbit_dbllm.format import DualBinaryWeight


@torch.library.custom_op("lowbit_dbllm::dual_binary_linear", mutates_args=())
def dual_binary_linear(
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    group_size: int,
    scale_dtype: torch.dtype,
    plan: str = "",
) -> Tensor:
    """Return x @ W^T + bias for W in row tiles of two planes without offsets.

    Args:
        x: float16, bfloat16 or float32 [..., columns].
        tiles: `RowTiles.words`.
        bias: [rows] or `None`.
        rows: Rows of W.
        columns: Columns of W.
        group_size: Columns a group.
        scale_dtype: Dtype of the scales in the tiles.
        plan: Configurations of the kernels as `write_plan` returns them; the defaults if empty.
    """
    weight = dense_weight(tiles, rows, columns, group_size, scale_dtype).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


@dual_binary_linear.register_kernel("cuda")
def _on_cuda(
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    group_size: int,
    scale_dtype: torch.dtype,
    plan: str = "",
) -> Tensor:
    from lowbit_dbllm.triton_configurations import read_plan
    from lowbit_dbllm.triton_launch import planned_product

    laid_out = RowTiles(tiles, rows, columns, group_size, 2, False, scale_dtype)
    return planned_product(x, laid_out, bias, read_plan(plan))


@dual_binary_linear.register_fake
def _fake(
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    group_size: int,
    scale_dtype: torch.dtype,
    plan: str = "",
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def dense_weight(tiles: Tensor, rows: int, columns: int, group_size: int, scale_dtype: torch.dtype) -> Tensor:
    """Return W, float32 [rows, columns]; the arguments are those of `dual_binary_linear`."""
    laid_out = RowTiles(tiles, rows, columns, group_size, 2, False, scale_dtype)
    (plane1, plane2), scales, _ = from_row_tiles(laid_out)
    return DualBinaryWeight(plane1, plane2, scales[0], scales[1], group_size).dequantize()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tiles, bias, *ctx.declaration, _ = inputs
    ctx.save_for_backward(tiles)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (tiles,) = ctx.saved_tensors
    for_x = for_bias = None
    if ctx.needs_input_grad[0]:
        for_x = gradient @ dense_weight(tiles, *ctx.declaration).to(gradient.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        for_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return for_x, None, for_bias, None, None, None, None, None


dual_binary_linear.register_autograd(_backward, setup_context=_setup_context)
