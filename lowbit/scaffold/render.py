"""Renders the template of a plugin's package into a folder, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from lowbit.errors import LowbitError
from lowbit.scaffold.names import PluginNames

TEMPLATE = Path(__file__).parent / "template"


def render_plugin(names: PluginNames, folder: Path, author: str, description: str) -> list[Path]:
    """Write a plugin's package.

    Args:
        names: From `plugin_names`.
        folder: Where to; it must be empty or absent.
        author: For the package's metadata.
        description: One line for the package's metadata and its README.

    Returns:
        The files, relative to `folder`, in order.

    Raises:
        LowbitError: copier is not installed, the folder is not empty or cannot be written, or a text is no single line.
    """
    answers = {**asdict(names), "author": author, "description": description}
    for key in ("author", "description"):
        if not answers[key].strip() or not answers[key].isprintable():
            raise LowbitError(f"the {key} must be one line of text, not {answers[key]!r}")
    _require_empty(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            made = Path(temporary) / "plugin"
            _run_copier(answers, made)
            if folder.exists():
                folder.rmdir()
            shutil.move(made, folder)
    except OSError as error:
        raise LowbitError(f"cannot write {folder}: {error}; choose another folder with --output") from error
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _require_empty(folder: Path) -> None:
    if folder.is_file():
        raise LowbitError(f"{folder} is a file; choose a folder with --output")
    if folder.is_dir() and any(folder.iterdir()):
        raise LowbitError(f"the folder {folder} is not empty; choose another with --output, or delete it")


def _run_copier(answers: Mapping[str, str], folder: Path) -> None:
    try:
        import copier
        from copier.errors import CopierError
    except ImportError as error:
        raise LowbitError("a new plugin is written by copier, which is absent: pip install 'lowbit[plugin]'") from error
    try:
        # Every question is answered here, and the template has no tasks, migrations or extensions to trust.
        copier.run_copy(str(TEMPLATE), folder, data=dict(answers), defaults=True, quiet=True, unsafe=False)
    except CopierError as error:
        raise LowbitError(f"copier could not render the template {TEMPLATE}: {error}") from error
