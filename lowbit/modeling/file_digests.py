"""Digests of a finished checkpoint's weights, so that files that changed since are noticed when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lowbit.errors import CheckpointError
from lowbit.untrusted import printable

FILES_SHA256 = "files_sha256"
"""Key of `quantization_config`: the sha256 of each safetensors file's bytes, by the file's name."""


def digests_of(files: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of each file's bytes, by its name."""
    ordered = sorted(files)
    with ThreadPoolExecutor() as pool:
        return {file.name: digest for file, digest in zip(ordered, pool.map(_sha256, ordered), strict=True)}


def require_unchanged(files: Iterable[Path], written: object) -> None:
    """Compare files of weights with the digests of those that were written.

    Args:
        files: All safetensors files of a checkpoint.
        written: What its configuration says of them; `None`, as checkpoints that transformers saved say nothing, is
            compared with nothing.

    Raises:
        CheckpointError: A file changed, is missing, or is one too many.
    """
    if written is None:
        return
    if not isinstance(written, dict):
        raise CheckpointError(f"quantization_config.{FILES_SHA256} must be a mapping of file names to sha256")
    found = digests_of(files)
    changed = sorted(printable(name) for name in found.keys() | written.keys() if found.get(name) != written.get(name))
    if changed:
        raise CheckpointError(
            f"{', '.join(changed[:3])[:300]}: not the bytes that were written (their sha256 is another than "
            f"quantization_config.{FILES_SHA256} says); copy the checkpoint again, or remove this key from config.json "
            "if you changed the weights yourself"
        )


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
