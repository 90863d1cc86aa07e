"""Digests of a journal's files, so that damaged and exchanged ones are noticed when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lowbit.documents import read_json
from lowbit.errors import LowbitError
from lowbit.untrusted import require_ordinary

SEAL = "sha256"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors: of their names, dtypes, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own digest."""
    return {**value, SEAL: _digest_of_json(value)}


def read_sealed(file: Path) -> dict[str, Any]:
    """Read a JSON object with its digest.

    Raises:
        LowbitError: It is absent, damaged, or another one than was written.
    """
    try:
        value = read_json(file, "the journal's file")
    except LowbitError as error:
        raise damaged(file, str(error)) from error
    found = value.pop(SEAL, None) if isinstance(value, dict) else None
    if found is None or found != _digest_of_json(value):
        raise damaged(file, "its content is not what was written")
    return dict(value)


def read_tensors(file: Path, sha256: object) -> dict[str, Tensor]:
    """Read a safetensors file whose digest is known.

    Raises:
        LowbitError: It is absent, damaged, or another one than was written.
    """
    try:
        require_ordinary(file)
        tensors = load_file(file)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise damaged(file, str(error)) from error
    require_digest(file, tensors, sha256)
    return tensors


def require_digest(file: Path, tensors: Mapping[str, Tensor], sha256: object) -> None:
    """Compare tensors that were read from a file with the digest of those that were written.

    Raises:
        LowbitError: They differ.
    """
    if digest_of(tensors) != sha256:
        raise damaged(file, "its tensors are not those that were written")


def damaged(file: Path, why: str) -> LowbitError:
    """Return the error that says that a file of a journal cannot be used, and what to do."""
    return LowbitError(f"{file} is damaged: {' '.join(why.split())[:300]}; delete {file.parent} and start again")


def _digest_of_json(value: Mapping[str, Any]) -> str:
    # Through text and back, so that tuples and lists, numbers as keys and text, are the same before and after.
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
