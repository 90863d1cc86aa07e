"""`QuantLinear`: a linear layer over a packed weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowbit.contracts import FormatSpec
from lowbit.modeling.packed_linear import PackedLinear

SENTINEL = "weight"


class QuantLinear(PackedLinear):
    """Multiplies by a packed weight through the kernel that serves its device.

    The empty buffer `weight` stands in the checkpoint too: a loader that does not know lowbit trips over its shape
    instead of filling the layer with random numbers.

    Args:
        spec: The resolved declaration of the format.
        packer: Name of the packer whose layout the buffers have.
        bias: Whether the layer adds a bias.
        bias_dtype: Dtype of the bias.
        transposed: Whether the model stores the matrix as [in, out], in transformers' `Conv1D`.
        device: Where to make the buffers.
    """

    bias: nn.Parameter | None
    weight: Tensor

    def __init__(
        self,
        spec: FormatSpec,
        packer: str,
        bias: bool,
        bias_dtype: torch.dtype = torch.float32,
        transposed: bool = False,
        device: torch.device | str = "meta",
    ) -> None:
        super().__init__(spec, packer, device)
        self.transposed = transposed
        self.in_features = spec.sizes["in"]
        self.out_features = spec.sizes["out"]
        self.register_buffer(SENTINEL, torch.empty(0, dtype=torch.uint8, device=device))
        made = nn.Parameter(torch.empty(self.out_features, dtype=bias_dtype, device=device)) if bias else None
        self.register_parameter("bias", made)

    def forward(self, x: Tensor) -> Tensor:
        """Return x @ W^T + bias for x [..., in]."""
        return self.product(x, self.bias)

    def to_dense(self, dtype: torch.dtype) -> nn.Module:
        """Return the plain layer that this one replaced, with the dequantized weight."""
        weight = self.dequantize().to(dtype)
        if self.transposed:
            return self._to_conv1d(weight.T.contiguous())
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            linear.bias = self.bias
        return linear

    def _to_conv1d(self, weight: Tensor) -> nn.Module:
        with torch.device("meta"):
            layer = Conv1D(self.out_features, self.in_features)
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        layer.register_parameter("bias", self.bias)
        return layer
