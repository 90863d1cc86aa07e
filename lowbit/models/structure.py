"""Finds the decoder blocks of any causal language model by its structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lowbit.errors import LowbitError


@dataclass(frozen=True)
class Decoder:
    """The stack of decoder blocks of a model.

    Args:
        name: Dotted name of the list of blocks, such as `model.layers`.
        blocks: The blocks in the order in which they run.
    """

    name: str
    blocks: tuple[nn.Module, ...]

    def block_name(self, index: int) -> str:
        """Return the dotted name of a block."""
        return f"{self.name}.{index}"


def require_own_weights(decoder: Decoder) -> None:
    """Refuse blocks that share a matrix: a packed checkpoint could hold it only under one of its names.

    Raises:
        LowbitError: With two names of the same matrix.
    """
    name_of: dict[int, str] = {}
    for index, block in enumerate(decoder.blocks):
        prefix = decoder.block_name(index)
        for name, parameter in block.named_parameters(prefix=prefix, remove_duplicate=False):
            first = name_of.setdefault(id(parameter), name)
            if first != name and parameter.dim() >= 2:
                raise LowbitError(f"{first} and {name} are one shared weight; lowbit cannot save such a model packed")


def find_decoder(model: nn.Module) -> Decoder:
    """Find the list of modules that holds most of the model's parameters, outermost first.

    Raises:
        LowbitError: The model has no list of at least one block with two-dimensional weights.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        size = sum(p.numel() for p in module.parameters() if p.dim() >= 2)
        if size and (best is None or size > best[0]):
            best = (size, name, module)
    if best is None:
        raise LowbitError(
            f"{type(model).__name__} has no list of decoder blocks: lowbit expects them in an nn.ModuleList"
        )
    return Decoder(best[1], tuple(best[2]))
