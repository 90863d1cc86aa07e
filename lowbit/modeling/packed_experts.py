"""`PackedExperts`: the fused matrices of a mixture-of-experts layer, packed expert by expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit.contracts import FormatSpec
from lowbit.modeling.packed_linear import PackedLinear


class PackedExperts(nn.Module):
    """Holds one packed weight an expert, each under its number, beside the fused parameter that it replaces.

    Args:
        specs: The resolved declaration of each expert's weight, and the packer of its layout.
        transposed: Whether the model stores the matrices as [in, out].
        device: Where to make the buffers.
    """

    def __init__(
        self, specs: list[tuple[FormatSpec, str]], transposed: bool, device: torch.device | str = "meta"
    ) -> None:
        super().__init__()
        self.transposed = transposed
        for expert, (spec, packer) in enumerate(specs):
            self.add_module(str(expert), PackedLinear(spec, packer, device))

    def __len__(self) -> int:
        return len(self._modules)

    def expert(self, number: int) -> PackedLinear:
        """Return the packed weight of one expert."""
        packed = self._modules[str(number)]
        assert isinstance(packed, PackedLinear)
        return packed

    def linear(self, number: int, x: Tensor) -> Tensor:
        """Return x @ W^T for one expert and x [tokens, in]."""
        return self.expert(number).product(x, None)

    def to_dense(self, dtype: torch.dtype) -> nn.Parameter:
        """Return the fused parameter with every expert dequantized, oriented as the model stores it."""
        matrices = [self.expert(number).dequantize().to(dtype) for number in range(len(self))]
        return nn.Parameter(torch.stack([m.T if self.transposed else m for m in matrices]), requires_grad=False)
