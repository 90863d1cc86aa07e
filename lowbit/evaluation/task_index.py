"""The harness's index of tasks, kept on disk because building it reads some fourteen thousand files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from lowbit.durable import write_text
from lowbit.errors import LowbitError

logger = logging.getLogger(__name__)

_TASKS_FOLDER = Path(lm_eval.__file__).parent / "tasks"


def cache_folder() -> Path:
    """The folder of what lowbit can compute again: `LOWBIT_CACHE_DIR`, else `lowbit` in the user's cache folder."""
    if chosen := os.environ.get("LOWBIT_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lowbit"


def make_task_manager(
    *, builtin: bool = True, include_path: str | None = None, metadata: Mapping[str, Any] | None = None
) -> TaskManager:
    """Make the harness's task manager, reading the index of its own tasks from disk when nothing has changed.

    Args:
        builtin: Whether the harness's own tasks are needed.
        include_path: A folder with further task definitions, which win over the harness's own.
        metadata: Settings handed to tasks that ask for them.
    """
    settings = dict(metadata or {})
    if not builtin:
        return TaskManager(include_path=include_path, include_defaults=False, metadata=settings)
    try:
        entries = _load_entries()
        return _indexed_manager(entries, include_path, settings)
    except (ImportError, AttributeError, TypeError, KeyError) as error:
        # The index is no public interface of the harness; another version may arrange it differently.
        logger.debug("building the harness's task index without the one on disk: %s", error)
        return TaskManager(include_path=include_path, metadata=settings)


def _indexed_manager(entries: Mapping[str, Any], include_path: str | None, metadata: dict[str, Any]) -> TaskManager:
    """A task manager with a ready index of the built-in tasks; only `include_path` is read."""
    from lm_eval.tasks._index import Kind

    manager = TaskManager(include_path=include_path, include_defaults=False, metadata=metadata)
    index = {**entries, **manager._index}
    names: dict[Any, list[str]] = {kind: [] for kind in Kind}
    for name in sorted(index):
        names[index[name].kind].append(name)
    manager._index = index
    manager._all_tasks = sorted(index)
    manager._all_subtasks = sorted([*names[Kind.TASK], *names[Kind.PY_TASK]])
    manager._all_groups = names[Kind.GROUP]
    manager._all_tags = names[Kind.TAG]
    return manager


def _load_entries() -> dict[str, Any]:
    """Entries of the built-in tasks by name: read from disk, or built and written there."""
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    path = cache_folder() / "lm_eval_tasks.json"
    fingerprint = _fingerprint()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["fingerprint"] == fingerprint:
            return {
                name: Entry(name, Kind[kind], _TASKS_FOLDER / file if file else None, tags=set(tags))
                for name, (kind, file, tags) in stored["entries"].items()
            }
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.debug("no usable task index in %s: %s", path, error)
    entries: dict[str, Any] = TaskIndex.build([_TASKS_FOLDER])
    _store(path, fingerprint, entries)
    return entries


def _fingerprint() -> str:
    """A hash of the names, sizes and times of all task definitions."""
    digest = hashlib.sha256(f"{lm_eval.__version__} {_TASKS_FOLDER}".encode())
    for folder, folders, files in os.walk(_TASKS_FOLDER):
        folders.sort()
        for file in sorted(files):
            if file.endswith(".yaml"):
                status = Path(folder, file).stat()
                digest.update(f"{folder}/{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _store(path: Path, fingerprint: str, entries: Mapping[str, Any]) -> None:
    rows = {
        name: [
            entry.kind.name,
            str(Path(entry.yaml_path).relative_to(_TASKS_FOLDER)) if entry.yaml_path else None,
            sorted(entry.tags),
        ]
        for name, entry in entries.items()
    }
    text = json.dumps({"fingerprint": fingerprint, "entries": rows})
    try:
        write_text(path, text)
    except LowbitError as error:
        logger.debug("the task index cannot be kept in %s: %s", path, error)
