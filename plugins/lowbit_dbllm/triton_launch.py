"""Launches the Triton kernels; the only door to the modules that import Triton."""

# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit import RowTiles
from lowbit_dbllm.triton_configurations import (
    Configuration,
    GemmConfiguration,
    GemvConfiguration,
    Plan,
    bucket_of,
    default_configuration,
    step_words,
)

REDUCE_BLOCK = 512


def planned_product(x: Tensor, tiles: RowTiles, bias: Tensor | None, plan: Plan) -> Tensor:
    """Return x @ W^T + bias with the plan's configuration for the number of rows of `x`.

    Args:
        x: float16, bfloat16 or float32 [..., columns].
        tiles: Two planes without offsets, in groups of a multiple of 32 columns.
        bias: [rows] or `None`.
        plan: Configurations by bucket.
    """
    flat = x.reshape(-1, tiles.columns)  # [x_rows, columns]
    if flat.stride(1) != 1 and tiles.columns > 1:
        flat = flat.contiguous()
    bucket = bucket_of(flat.shape[0])
    configuration = plan.get(bucket) or default_configuration(tiles, bucket, x.dtype == torch.float32)
    return product(flat, tiles, bias, configuration).reshape(*x.shape[:-1], tiles.rows)


def product(x: Tensor, tiles: RowTiles, bias: Tensor | None, configuration: Configuration) -> Tensor:
    """Return x @ W^T + bias, [x_rows, rows], for x [x_rows, columns] whose last dimension is dense."""
    y = torch.empty(x.shape[0], tiles.rows, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    with _on_device(x):
        if isinstance(configuration, GemvConfiguration):
            _gemv(x, tiles, bias, y, configuration)
        else:
            _gemm(x, tiles, bias, y, configuration)
    return y


@dataclass(frozen=True)
class Split:
    """How the steps of the input dimension are divided among programs.

    Args:
        steps: Steps of each part; the last one may have fewer.
        parts: Parts, all of them with something to do.
        whole: Whether the last one has as many.
    """

    steps: int
    parts: int
    whole: bool


def split_steps(tiles: RowTiles, words: int, configuration: GemvConfiguration) -> Split:
    """Divide the steps of a row, of `words` words each, into the configured parts or fewer, in whole iterations."""
    steps = tiles.groups * tiles.group_words // words
    each = configuration.segments * -(-steps // (configuration.segments * configuration.parts))
    parts = -(-steps // each)
    return Split(each, parts, steps == each * parts)


def constants(tiles: RowTiles, bucket: int, wide: bool) -> dict[str, Any]:
    """Return the compile-time arguments that both kernels take; the arguments are those of `step_words`."""
    return {
        "GROUP_WORDS": tiles.group_words,
        "STEP_WORDS": step_words(tiles, bucket, wide),
        "SCALES_PER_WORD": 4 // tiles.scale_dtype.itemsize,
        "WHOLE_COLUMNS": tiles.columns == tiles.groups * tiles.group_size,
    }


def _gemv(x: Tensor, tiles: RowTiles, bias: Tensor | None, y: Tensor, configuration: GemvConfiguration) -> None:
    from lowbit_dbllm.triton_gemv import gemv_kernel, reduce_kernel

    bucket = bucket_of(x.shape[0])
    known = constants(tiles, bucket, x.dtype == torch.float32)
    split = split_steps(tiles, known["STEP_WORDS"], configuration)
    blocks = -(-tiles.words.shape[0] // configuration.tiles)
    partial = split.parts > 1
    # Scratch comes from the caching allocator, outside the kernel: a captured graph replays it.
    out = torch.empty(split.parts, *y.shape, dtype=torch.float32, device=y.device) if partial else y
    gemv_kernel[(blocks, split.parts)](
        *_pointers(x, tiles, None if partial else bias, out),
        x.shape[0],
        tiles.rows,
        tiles.columns,
        tiles.groups,
        x.stride(0),
        split.steps,
        **known,
        TILES=configuration.tiles,
        SEGMENTS=configuration.segments,
        N=8 if bucket <= 8 else 16,
        STAGES=configuration.stages,
        WHOLE_STEPS=split.whole,
        HAS_BIAS=bias is not None and not partial,
        PARTIAL=partial,
        INTERPRET=_interpreted(gemv_kernel),
        num_warps=configuration.warps,
    )
    if partial:
        reduce_kernel[(-(-y.numel() // REDUCE_BLOCK),)](
            out,
            _given(bias, y),
            y,
            y.numel(),
            tiles.rows,
            PARTS=split.parts,
            BLOCK=REDUCE_BLOCK,
            HAS_BIAS=bias is not None,
        )


def _gemm(x: Tensor, tiles: RowTiles, bias: Tensor | None, y: Tensor, configuration: GemmConfiguration) -> None:
    from lowbit_dbllm.triton_gemm import gemm_kernel

    blocks = -(-tiles.words.shape[0] // configuration.tiles)
    gemm_kernel[(-(-x.shape[0] // configuration.x_rows), blocks)](
        *_pointers(x, tiles, bias, y),
        x.shape[0],
        tiles.rows,
        tiles.columns,
        tiles.groups,
        x.stride(0),
        **constants(tiles, bucket_of(x.shape[0]), x.dtype == torch.float32),
        TILES=configuration.tiles,
        N=configuration.x_rows,
        STAGES=configuration.stages,
        HAS_BIAS=bias is not None,
        INTERPRET=_interpreted(gemm_kernel),
        num_warps=configuration.warps,
    )


def _pointers(
    x: Tensor, tiles: RowTiles, bias: Tensor | None, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    words = tiles.words.contiguous()
    return x, words, words.view(tiles.scale_dtype), _given(bias, y), y


def _given(bias: Tensor | None, other: Tensor) -> Tensor:
    """A kernel without bias still takes a pointer, which it does not read."""
    return other if bias is None else bias.contiguous()


def _interpreted(kernel: Any) -> bool:
    from triton import JITFunction

    return not isinstance(kernel, JITFunction)


def _on_device(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
