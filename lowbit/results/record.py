"""Writes a result the way lm-eval does: one file a run, never overwritten, samples beside it.

Any number of processes on any number of machines may write to one directory. A file is written whole under a temporary
name and gets its own by a hard link, which fails where the name is taken; then the run takes the next microsecond. The
samples come first and the result last, so that a result that is there is complete, and what a killed run leaves is
never taken for one.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lowbit.durable import TEMPORARY_SUFFIX, flush_folder, temporary_name
from lowbit.errors import LowbitError

LOWBIT_KEY = "lowbit"
_STALE_SECONDS = 24 * 3600
_ATTEMPTS = 1000


def result_folder(output_path: Path, model_name: str) -> Path:
    """Return the folder of a model's results below the output path."""
    return output_path / sanitize(model_name)


def sanitize(name: str) -> str:
    """Return a name that is safe as a folder's, the way lm-eval does it."""
    return re.sub(r"[\"<>:/\|\\?\*\[\]]+", "__", name)


def samples_name(task: str, date: str) -> str:
    """Return the name of a task's file of logged samples, the way lm-eval forms it."""
    return f"samples_{sanitize(task)}_{date}.jsonl"


def write_result(
    output_path: Path, model_name: str, harness: Mapping[str, Any], lowbit: Mapping[str, Any], moment: datetime
) -> Path:
    """Write one result: the harness's dictionary unchanged plus the key `lowbit`, and its samples beside it.

    Args:
        output_path: A folder, or a `.json` file whose name gets the date.
        model_name: What the folder is named after.
        harness: lm-eval's result, with or without samples.
        lowbit: Everything lowbit adds.
        moment: When the run ended; part of the file's name, or, where another run has that name, a moment just after.

    Returns:
        The result's file.

    Raises:
        LowbitError: The file cannot be written.
    """
    if output_path.suffix == ".json":
        folder, stem = output_path.parent, output_path.stem
    else:
        folder, stem = result_folder(output_path, model_name), "results"
    content = {key: value for key, value in harness.items() if key != "samples"}
    text = json.dumps({**content, LOWBIT_KEY: finite(lowbit)}, indent=2, ensure_ascii=False, default=str) + "\n"
    written: list[tuple[str | None, Path]] = []  # A task and its samples; None and the result, which is the last.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        for task, samples in harness.get("samples", {}).items():
            lines = (json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
            written.append((task, _write_temporary(folder / f"samples_{sanitize(task)}.jsonl", lines)))
        written.append((None, _write_temporary(folder / f"{stem}.json", [text])))
        return _publish_together(folder, stem, written, moment)
    except OSError as error:
        raise LowbitError(f"the result cannot be written to {folder}: {error}") from error
    finally:
        for _, temporary in written:
            temporary.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """Return a JSON value in which numbers that JSON cannot hold are strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _write_temporary(path: Path, lines: Iterable[str]) -> Path:
    temporary = temporary_name(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _publish_together(folder: Path, stem: str, written: list[tuple[str | None, Path]], moment: datetime) -> Path:
    """Give the files of one run names with one date that no other run has, the result's last."""
    for attempt in range(_ATTEMPTS):
        date = (moment + timedelta(microseconds=attempt)).isoformat(timespec="microseconds").replace(":", "-")
        paths = [folder / (f"{stem}_{date}.json" if task is None else samples_name(task, date)) for task, _ in written]
        if _publish_all([temporary for _, temporary in written], paths):
            return paths[-1]
    raise LowbitError(f"{_ATTEMPTS} other results of {moment.astimezone(UTC)} lie in {folder}; run the command again")


def _publish_all(temporaries: list[Path], paths: list[Path]) -> bool:
    """Name every file, or none where another run has one of the names."""
    if any(path.exists() for path in paths):
        return False
    done: list[Path] = []
    try:
        for temporary, path in zip(temporaries, paths, strict=True):
            _publish(temporary, path)
            done.append(path)
    except OSError as error:
        for ours in done:
            ours.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            return False
        raise
    flush_folder(paths[-1].parent)
    return True


def _publish(temporary: Path, path: Path) -> None:
    """Give a whole file its name; unlike a rename, this fails where there is such a file.

    Raises:
        FileExistsError: Another run has the name.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        _publish_without_links(temporary, path)


def _publish_without_links(temporary: Path, path: Path) -> None:
    """Rename under a claim that one writer only can have, for file systems that have no hard links."""
    claim = path.with_name(f"{path.name}.claim{TEMPORARY_SUFFIX}")
    claim.open("x").close()
    try:
        if path.exists():
            raise FileExistsError(path)
        temporary.rename(path)
    finally:
        claim.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Remove what runs that were killed a day or longer ago left half-written."""
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
        except FileNotFoundError:
            continue  # Its own writer, or another run's cleaning, was faster.
