"""Checks of a parent's tensors before anything is made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.errors import CheckpointError, LowbitError

FLOATING_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK_ELEMENTS = 2**22


def require_finite(tensor: Tensor, name: str) -> None:
    """Check a tensor a few megabytes at a time.

    Raises:
        LowbitError: It has values that are NaN or infinite.
    """
    bad = sum(int((~torch.isfinite(part)).sum()) for part in _chunks(tensor))
    if bad:
        raise LowbitError(
            f"weight {name} has {bad} values that are NaN or infinite; "
            "the parent checkpoint is damaged, so nothing was quantized from it"
        )


def _chunks(tensor: Tensor) -> Iterable[Tensor]:
    if tensor.dim() == 0 or not tensor.numel() or not tensor.is_floating_point():
        return [tensor]
    rows = max(1, CHUNK_ELEMENTS // (tensor.numel() // tensor.shape[0] or 1))
    return torch.split(tensor, rows)


def absent_tensors(model: PreTrainedModel, present: Iterable[str]) -> list[str]:
    """Return the names of tensors that a checkpoint must hold and lacks; tied ones follow from another tensor.

    Args:
        model: The model, on meta or not.
        present: Names, in the model, of the tensors that the checkpoint holds.
    """
    patterns = list(getattr(model, "_keys_to_ignore_on_load_missing", None) or [])
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        patterns += list(getattr(model, "_tied_weights_keys", None) or [])
    absent = set(model.state_dict()) - set(present)
    return sorted(name for name in absent if not any(re.search(pattern, name) for pattern in patterns))


def require_stored_as(name: str, found: tuple[str, tuple[int, ...]], expected: Tensor, converted: bool) -> None:
    """Compare a stored tensor's header with the model's tensor.

    Args:
        name: The tensor's name in the model.
        found: Its dtype name and shape in the file.
        expected: The model's tensor, on meta or not.
        converted: Whether it is only a part of the model's tensor, so that its shape says nothing.

    Raises:
        CheckpointError: The shape differs, or numbers are not stored as floating point.
    """
    dtype, shape = found
    if expected.is_floating_point() and dtype not in FLOATING_DTYPES:
        raise CheckpointError(
            f"tensor {name} is stored as {dtype}; lowbit quantizes parents stored as {', '.join(FLOATING_DTYPES)}"
        )
    if not converted and shape != tuple(expected.shape):
        raise CheckpointError(
            f"tensor {name} has shape {shape} in the file, but config.json makes it {tuple(expected.shape)}"
        )
