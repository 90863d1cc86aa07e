"""Looks at the small files of a model's folder before transformers reads them whole, whatever they are."""

from __future__ import annotations

import os
import stat
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from lowbit.errors import CheckpointError
from lowbit.untrusted import MEBIBYTE, inside, is_folder, printable, read_json

LARGEST = 256 * MEBIBYTE
"""Bytes of a configuration or of a tokenizer's file; the largest known have a tenth of it."""
PATTERNS = (
    *("config.json", "*_config.json", "*.index.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*"),
)
"""What transformers may read of a folder, beside the weights."""
WEIGHTS = "*.safetensors"
TEMPLATES = "additional_chat_templates"
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
                if fnmatchcase(entry.name, WEIGHTS):
                    _require_ordinary(Path(entry.path), sys.maxsize)
                elif any(fnmatchcase(entry.name, pattern) for pattern in PATTERNS):
                    _require_ordinary(Path(entry.path), LARGEST)
        if (templates := folder / TEMPLATES).is_dir():
            require_inside(templates, folder)
            for template in templates.iterdir():
                _require_ordinary(template, LARGEST)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error
    _require_own_tokenizer(folder)


def _require_own_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer's configuration that names files elsewhere as the tokenizer."""
    file = folder / "tokenizer_config.json"
    try:
        config = read_json(file, LARGEST)
    except (OSError, ValueError):
        return  # Absent; or damaged, which transformers says.
    named = config.get("fast_tokenizer_files") if isinstance(config, dict) else None
    for name in named if isinstance(named, list) else [named]:
        if name is not None and (not isinstance(name, str) or Path(name).name != name):
            raise CheckpointError(printable(f"{file}: fast_tokenizer_files names {name!r:.100}, no file beside it"))


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


def _require_ordinary(file: Path, largest: int) -> None:
    try:
        status = file.stat()
    except OSError as error:
        raise CheckpointError(printable(f"{file} cannot be read: {error.strerror or error}")) from error
    require_inside(file, file.parent)
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(printable(f"{file} is no ordinary file but a pipe or a device; remove it"))
    if status.st_size > largest:
        raise CheckpointError(printable(f"{file} has {status.st_size} bytes; the limit for such a file is {largest}"))
