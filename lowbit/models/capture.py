"""Captures how a model calls its decoder blocks, without running them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.models.structure import Decoder


@dataclass(frozen=True)
class BlockCall:
    """The arguments that a model passes to one of its blocks, beside the hidden states.

    Args:
        args: Positional arguments after the hidden states.
        kwargs: Every keyword argument.
        hidden_keyword: Name under which the hidden states are passed, or `None` when they come first.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    hidden_keyword: str | None = None

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block on hidden states [1, length, hidden size] with these arguments."""
        if self.hidden_keyword is not None:
            return first_tensor(block(*self.args, **{self.hidden_keyword: hidden}, **self.kwargs))
        return first_tensor(block(hidden, *self.args, **self.kwargs))


@dataclass
class _Recording:
    calls: dict[int, BlockCall] = field(default_factory=dict)
    entered: Tensor | None = None


def first_tensor(output: Any) -> Tensor:
    """Return the hidden states of a block's output, which is a tensor or a tuple that begins with one."""
    found = output if isinstance(output, Tensor) else output[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"a decoder block returned {type(output).__name__}, which does not begin with hidden states")
    return found


def capture_calls(run: Callable[[], object], decoder: Decoder, returns_tuple: bool) -> tuple[list[BlockCall], Tensor]:
    """Record the arguments of every block during one forward pass in which blocks pass hidden states through.

    Arguments such as masks and rotary embeddings depend on positions only, never on what a block computed.

    Args:
        run: Runs the model's forward pass once, without a cache.
        decoder: The model's blocks; their weights may be on the meta device.
        returns_tuple: Whether the model expects its blocks to return a tuple.

    Returns:
        One call a block, and the hidden states that entered the first block.
    """
    recording = _Recording()
    with _passing_through(decoder, recording, returns_tuple), torch.no_grad():
        run()
    if recording.entered is None or len(recording.calls) != len(decoder.blocks):
        raise RuntimeError(f"the model ran {len(recording.calls)} of its {len(decoder.blocks)} blocks")
    return [recording.calls[index] for index in range(len(decoder.blocks))], recording.entered


@contextmanager
def _passing_through(decoder: Decoder, recording: _Recording, returns_tuple: bool) -> Iterator[None]:
    """Replace the forward method of every block, keeping the modules and their attributes in place."""
    try:
        for index, block in enumerate(decoder.blocks):
            block.forward = _recorder(index, recording, returns_tuple)
        yield
    finally:
        for block in decoder.blocks:
            del block.forward


def _recorder(index: int, recording: _Recording, returns_tuple: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        keyword = None if args else "hidden_states"
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if recording.entered is None:
            recording.entered = hidden
        elif hidden.shape != recording.entered.shape:
            # A model that takes the first element of its blocks' output has cut a bare tensor to pieces.
            raise RuntimeError(f"hidden states changed from {recording.entered.shape} to {hidden.shape} between blocks")
        recording.calls[index] = BlockCall(args[1:], kwargs, keyword)
        return (hidden,) if returns_tuple else hidden

    return forward
