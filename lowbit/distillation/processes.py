"""The processes of a run: one, or several that `accelerate launch` or torchrun started."""

from __future__ import annotations

import os
from datetime import timedelta

from accelerate import Accelerator, InitProcessGroupKwargs

LONGEST_WAIT = timedelta(days=14)
"""Processes wait for the main one while it quantizes, which takes hours for large models."""


def several_processes() -> bool:
    """Say whether a launcher started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Say whether this process is the one that writes; a single one is."""
    return int(os.environ.get("RANK", "0")) == 0


def make_accelerator(device: str) -> Accelerator:
    """Return what connects the processes and places the model on their devices.

    Args:
        device: `cpu`, or a kind of accelerator, of which each process takes its own.
    """
    handlers = [InitProcessGroupKwargs(timeout=LONGEST_WAIT)]
    return Accelerator(cpu=device == "cpu", kwargs_handlers=handlers)
