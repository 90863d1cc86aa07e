"""The processes that share a run's quantization: one, or those of torch.distributed's default group."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lowbit.contracts import Ranks
from lowbit.errors import FailedTogetherError, LowbitError


class OneRank:
    """A single process."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def gather(self, value: Any) -> list[Any]:
        """Return this process's value."""
        return [value]

    def sum(self, tensor: Tensor, to: Collection[int]) -> None:
        """Do nothing: a sum of one is there."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Do nothing: nobody else is there."""


class DistributedRanks:
    """The processes of torch.distributed's default group, which is set up.

    Args:
        device: This process's own; gloo sends from the processor's memory, other backends from the device's.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self.device = torch.device("cpu") if torch.distributed.get_backend() == "gloo" else device

    def gather(self, value: Any) -> list[Any]:
        """Return every process's plain value, by rank."""
        from accelerate.utils import gather_object

        with connected():
            found: list[Any] = gather_object([value])
        return found

    def sum(self, tensor: Tensor, to: Collection[int]) -> None:
        """Add up a tensor from every process, in place, for the ranks named."""
        sent = tensor.to(self.device)
        with connected():
            if len(to) == 1:
                torch.distributed.reduce(sent, dst=next(iter(to)))
            else:
                torch.distributed.all_reduce(sent)
        if sent is not tensor:
            tensor.copy_(sent)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy one process's tensor into every other's, in place."""
        with connected():
            torch.distributed.broadcast(tensor, src=source)


@contextmanager
def connected() -> Iterator[None]:
    """Say in plain words that another process is gone.

    Raises:
        LowbitError: What is inside lost its connection to the others.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise LowbitError(
            f"the connection to the run's other processes broke, as one of them ended ({reason}); finished blocks are "
            "kept, and the same command continues from there"
        ) from error


@contextmanager
def agreed(ranks: Ranks) -> Iterator[None]:
    """Let every process do something of its own, and go on only if all of them could; it meets the others at the end.

    What is inside must not wait for other processes. An interrupt is not told to them: whoever started the processes
    ends them all.

    Raises:
        FailedTogetherError: One of several processes failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if ranks.size == 1:
        if failure is not None:
            raise failure
        return
    reasons = ranks.gather(None if failure is None else _reason(failure))
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise FailedTogetherError(f"process {rank} of {ranks.size} failed: {reason}") from failure


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, LowbitError) else f"{type(error).__name__}: {error}"
