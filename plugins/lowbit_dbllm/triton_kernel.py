"""The kernel `triton-dual-binary`: which weights it serves, and how one is made ready."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor

from lowbit import Kernel, PackedProduct, PackedWeight, RowTiles, Support, Workload
from lowbit_dbllm.format import DualBinaryWeight
from lowbit_dbllm.interleaved import InterleavedPacker, resolved_group_size

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST_CAPABILITY = (8, 0)


class TritonDualBinary(Kernel):
    """Multiplies by dual-binary weights on NVIDIA GPUs without expanding them in memory.

    It reads the interleaved layout. A weight in another one is laid out again when it is bound, which takes its packed
    bytes a second time. The first weight of each shape on a GPU is tuned, which takes about a minute once.
    """

    name: ClassVar[str] = "triton-dual-binary"
    priority: ClassVar[int] = 200

    def supports(self, workload: Workload) -> Support:
        """Serve dual-binary weights in groups of a multiple of 32 columns, on CUDA devices with Triton."""
        reason = _refusal(workload)
        return Support(reason is None, reason or "")

    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias for a weight in the interleaved layout, with the default configurations."""
        return _product(InterleavedPacker().row_tiles(packed), "", x, bias)

    def bind(self, packed: PackedWeight, workload: Workload) -> PackedProduct:
        """Lay the weight out for the kernel where needed, and compile and tune for its shape."""
        from lowbit_dbllm.triton_configurations import write_plan
        from lowbit_dbllm.triton_tuner import tuned_plan

        tiles = workload.packer.row_tiles(packed)
        if tiles is None:
            packer = InterleavedPacker()
            tiles = packer.row_tiles(packer.pack(workload.packer.unpack(packed, workload.format_class)))
        plan = write_plan(tuned_plan(tiles, workload.dtype))
        product = partial(_product, tiles, plan)
        if tiles.words.is_cuda and not torch.cuda.is_current_stream_capturing():
            # A kernel that does not compile must fail here, where another one can take its place.
            for rows in (1, 64):
                product(torch.zeros(rows, tiles.columns, dtype=workload.dtype, device=tiles.words.device), None)
        return product


def _product(tiles: RowTiles, plan: str, x: Tensor, bias: Tensor | None) -> Tensor:
    from lowbit_dbllm.triton_op import dual_binary_linear

    result: Tensor = dual_binary_linear(
        x, tiles.words, bias, tiles.rows, tiles.columns, tiles.group_size, tiles.scale_dtype, plan
    )
    return result


def _refusal(workload: Workload) -> str | None:
    if workload.spec.format != DualBinaryWeight.format:
        return f"it multiplies by {DualBinaryWeight.format} weights only"
    if workload.device.type != "cuda":
        return f"it runs on CUDA devices, not on {workload.device.type}"
    if torch.version.hip is not None:
        return "it was made for NVIDIA GPUs; this torch was built for ROCm"
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'lowbit[triton]')"
    if workload.dtype not in DTYPES:
        return f"activations must be float16, bfloat16 or float32, not {workload.dtype}"
    size = resolved_group_size(workload.spec)
    if size % RowTiles.word_bits:
        return f"groups must have a multiple of {RowTiles.word_bits} columns, not {size}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(workload.device) < OLDEST_CAPABILITY:
        return "it needs compute capability 8.0 (Ampere) or newer"
    return None
