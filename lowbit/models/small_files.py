"""Looks at the small files of a model's folder before transformers reads them whole, whatever they are."""

from __future__ import annotations

import os
import stat
from fnmatch import fnmatchcase
from pathlib import Path

from lowbit.errors import CheckpointError
from lowbit.untrusted import MEBIBYTE, inside, is_folder, printable

LARGEST = 256 * MEBIBYTE
"""Bytes of a configuration or of a tokenizer's file; the largest known have a tenth of it."""
PATTERNS = (
    *("config.json", "*_config.json", "*.index.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*"),
)
"""What transformers may read of a folder, beside the weights."""
MOST_FILES = 100_000


def require_ordinary_files(folder: Path) -> None:
    """Refuse a model's folder where a file that transformers may read is a pipe, a device, elsewhere, or enormous.

    Args:
        folder: The model's folder; a path that is none is left to those who read it.

    Raises:
        CheckpointError: There is such a file; the message names it.
    """
    if not is_folder(folder):
        return
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries, 1):
                if number > MOST_FILES:
                    raise CheckpointError(f"{folder} has over {MOST_FILES} files; it is no model's folder")
                if any(fnmatchcase(entry.name, pattern) for pattern in PATTERNS):
                    _require_ordinary(Path(entry.path))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error


def require_inside(file: Path, folder: Path) -> None:
    """Refuse a file of a model that lies outside its folder, by a link or by its name.

    The hub's cache is the exception: its snapshots link to the `blobs` beside them.

    Raises:
        CheckpointError: The file lies elsewhere.
    """
    if inside(file, folder):
        return
    home = folder.resolve().parent
    if home.name == "snapshots" and inside(file, home.parent / "blobs"):
        return
    raise CheckpointError(printable(f"{file} leads out of its folder; put a copy of the file there"))


def _require_ordinary(file: Path) -> None:
    try:
        status = file.stat()
    except OSError as error:
        raise CheckpointError(printable(f"{file} cannot be read: {error.strerror or error}")) from error
    require_inside(file, file.parent)
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(printable(f"{file} is no ordinary file but a pipe or a device; remove it"))
    if status.st_size > LARGEST:
        raise CheckpointError(printable(f"{file} has {status.st_size} bytes; the limit for such a file is {LARGEST}"))
