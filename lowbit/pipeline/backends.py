"""Measures how far the packed model and its dense form are apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.modeling.packed_linear import PackedLinear
from lowbit.pipeline.load import logits_of

SAMPLES = 2
LENGTH = 128


@dataclass(frozen=True)
class BackendDifference:
    """Packed against dense on the same tokens.

    Args:
        max_abs_logit: Largest absolute difference of a logit.
        relative_perplexity: |packed - dense| / dense of the perplexity of the tokens.
        tokens: How many random tokens were compared.
        dtype: In which the model computed.
    """

    max_abs_logit: float
    relative_perplexity: float
    tokens: int
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def probe_tokens(vocabulary: int, positions: int, seed: int) -> Tensor:
    """Return random token ids int64 [samples, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (SAMPLES, min(LENGTH, positions)), generator=generator)


def compare_backends(packed: Tensor, dense: Tensor, tokens: Tensor, dtype: torch.dtype) -> BackendDifference:
    """Compare logits [samples, length, vocabulary] of both forms."""
    first, second = _perplexity(packed, tokens), _perplexity(dense, tokens)
    return BackendDifference(
        max_abs_logit=float((packed - dense).abs().max()),
        relative_perplexity=abs(first - second) / second,
        tokens=tokens.numel(),
        dtype=str(dtype).removeprefix("torch."),
    )


def dense_with_difference(model: Any, tokens: Tensor) -> tuple[Any, BackendDifference, list[str]]:
    """Turn a packed model dense and measure the difference on the way.

    Returns:
        The dense model, the difference, and the kernels that served the packed one.
    """
    packed = logits_of(model, tokens)
    kernels = kernels_used(model)
    dtype = model.dtype
    dense = model.dequantize()
    return dense, compare_backends(packed, logits_of(dense, tokens), tokens, dtype), kernels


def kernels_used(model: Any) -> list[str]:
    """Return the names of the kernels that the packed layers of a model have chosen."""
    chosen = (module.chosen_kernel for module in model.modules() if isinstance(module, PackedLinear))
    return sorted({name for name in chosen if name is not None})


def _perplexity(logits: Tensor, tokens: Tensor) -> float:
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return float(losses.exp())
