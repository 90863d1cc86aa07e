"""Fully sharded training: the student's weights are split among the processes, small parameters are kept whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.distillation.student import Body
from lowbit.errors import LowbitError


def shard(student: Body, kept_whole: Iterable[nn.Parameter], device: torch.device, processes: int) -> None:
    """Split a student's weights among the processes; each decoder block is gathered while it runs.

    Args:
        student: Its parametrized weights become `DTensor`s, split along their first dimension.
        kept_whole: Parameters that every process keeps; they are moved to the device, and nobody sums their gradients.
        device: Where this process computes.
        processes: How many there are.

    Raises:
        LowbitError: The installed torch cannot do it.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise LowbitError(f"sharded training (--use_fsdp) needs torch 2.8 or newer, here is {torch.__version__}") from (
            error
        )
    mesh = init_device_mesh(device.type, (processes,))
    ignored = set(kept_whole)
    for parameter in ignored:
        parameter.data = parameter.data.to(device)
    for module in (*student.blocks, student.base):
        fully_shard(module, mesh=mesh, ignored_params=ignored, reshard_after_forward=True)


def is_split(tensor: Tensor) -> bool:
    """Say whether each process holds only a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as a whole; of a split one every process must ask at the same time."""
    split: Any = tensor
    gathered: Tensor = split.full_tensor() if is_split(tensor) else tensor
    return gathered


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    split: Any = tensor
    local: Tensor = split.to_local() if is_split(tensor) else tensor
    return local


def as_split_as(value: Tensor, pattern: Tensor) -> Tensor:
    """Return this process's part of a whole value, split as another tensor is, on its device."""
    value = value.to(pattern.device)
    if not is_split(pattern):
        return value
    from torch.distributed.tensor import distribute_tensor

    split: Any = pattern
    # Every process has the whole value already, and takes its part without asking another.
    return distribute_tensor(value, split.device_mesh, split.placements, src_data_rank=None)
