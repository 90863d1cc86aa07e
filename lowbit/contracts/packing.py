"""`Packer` and `PackedWeight`: how a quantized weight lies in memory and in the file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.contracts.fields import FormatSpec
from lowbit.contracts.formats import QuantizedWeight
from lowbit.contracts.row_tiles import RowTiles


@dataclass(frozen=True)
class TensorLayout:
    """Shape, dtype and accounting role of one packed tensor.

    Args:
        shape: Lengths, outermost first.
        dtype: Torch dtype as stored.
        role: The line of the bits report that its bytes are counted under.
        also: Bytes of the tensor that belong under other lines, by role.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    role: str
    also: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight as the named tensors that the checkpoint holds.

    Args:
        spec: The resolved declaration of the format.
        packer: Name of the packer that made the tensors, and that can unpack them.
        tensors: The packed tensors by name.
    """

    spec: FormatSpec
    packer: str
    tensors: Mapping[str, Tensor]


class Packer(ABC):
    """Lays a quantized weight out as named tensors, and back, bit-exactly.

    The generic packer serves every format; a plugin writes one only for a layout that a kernel wants.
    """

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]

    @abstractmethod
    def layout(self, spec: FormatSpec, format_class: type[QuantizedWeight]) -> dict[str, TensorLayout]:
        """Say from the declaration alone which tensors `pack` makes, so that they can be built on meta."""

    @abstractmethod
    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        """Lay out a weight."""

    @abstractmethod
    def unpack(self, packed: PackedWeight, format_class: type[QuantizedWeight]) -> QuantizedWeight:
        """Recover exactly the weight that was packed."""

    def row_tiles(self, packed: PackedWeight) -> RowTiles | None:
        """Return the row tiles that this layout consists of, without a copy; `None` if it is another layout.

        Kernels that read row tiles then need no second copy of the weight.
        """
        return None
