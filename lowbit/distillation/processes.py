"""The processes of a run: one, or several that `accelerate launch` or torchrun started."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

    from lowbit.contracts import Ranks

LONGEST_WAIT = timedelta(days=14)
"""Processes wait for the main one while it trains blocks one by one, which takes hours for large models."""


def several_processes() -> bool:
    """Say whether a launcher started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Say whether this process is the one that writes and prints; a single one is."""
    return int(os.environ.get("RANK", "0")) == 0


def is_sharded() -> bool:
    """Say whether the processes share out the student's weights: `accelerate launch --use_fsdp`."""
    return several_processes() and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")


def make_accelerator(device: str) -> Accelerator:
    """Return what connects the processes and places the model on their devices.

    Args:
        device: `cpu`, or a kind of accelerator, of which each process takes its own.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    wanted = torch.device(device)
    if wanted.type == "cuda" and wanted.index is not None and not several_processes():
        torch.cuda.set_device(wanted)
    handlers = [InitProcessGroupKwargs(timeout=LONGEST_WAIT)]
    return Accelerator(cpu=wanted.type == "cpu", kwargs_handlers=handlers)


def ranks_of(processes: Accelerator | None) -> Ranks:
    """Return the processes as those who quantize together see them.

    Args:
        processes: What `make_accelerator` returned; `None` of a single process that needs none.
    """
    from lowbit.quantization.ranks import DistributedRanks, OneRank

    if processes is None or processes.num_processes == 1:
        return OneRank()
    return DistributedRanks(processes.device)


def from_main_process(value: Any) -> Any:
    """Return the main process's value to every process; they must have met in `make_accelerator` before.

    Args:
        value: A plain value; only the main process's counts.

    Raises:
        LowbitError: Another process is gone.
    """
    from accelerate.utils import broadcast_object_list

    from lowbit.quantization.ranks import connected

    with connected():
        return broadcast_object_list([value])[0]


def part_from_others() -> None:
    """Close the connection between the processes, at the end of a command that went well."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
