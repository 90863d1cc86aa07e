"""A model of random numbers in the shape of a real one: what is timed on it needs no weight of the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowbit.models.freed_memory import release_freed_memory
from lowbit.models.key_mapping import drop
from lowbit.models.streamed import StreamedModel

DEVIATION = 0.02


class TrialModel(StreamedModel):
    """A `StreamedModel` that reads configuration and file headers only.

    Its blocks hold random numbers of the right shapes; embeddings hold zeros, which take no memory.
    """

    def outside(self) -> dict[str, Tensor]:
        """Return nothing: no tensor is read."""
        return {}

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Fill a block with random numbers for the time of the context."""
        block = self.decoder.blocks[index]
        fill(block)
        block.to(self.device)
        try:
            yield block
        finally:
            drop(block)
            release_freed_memory()

    def _load_outside(self, wanted: Callable[[str], bool]) -> None:
        """Put zeros in the place of tensors outside the blocks."""
        for name, parameter in list(self.model.named_parameters()):
            if parameter.is_meta and wanted(name):
                owner, _, leaf = name.rpartition(".")
                zeros = nn.Parameter(torch.zeros(parameter.shape), requires_grad=False)
                self.model.get_submodule(owner).register_parameter(leaf, zeros)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Put random numbers in the place of a module's tensors on the meta device; vectors are ones."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_meta:
                part.register_parameter(name, nn.Parameter(_random(parameter), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_meta:
                part.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype))


def _random(parameter: Tensor) -> Tensor:
    made = torch.empty(parameter.shape, dtype=parameter.dtype)
    return made.fill_(1.0) if made.dim() < 2 else made.normal_(0, DEVIATION)
