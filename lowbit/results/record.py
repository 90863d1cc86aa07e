"""Writes a result the way lm-eval does: one file a run, never overwritten, samples beside it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lowbit.durable import temporary_name
from lowbit.errors import LowbitError

LOWBIT_KEY = "lowbit"


def result_folder(output_path: Path, model_name: str) -> Path:
    """Return the folder of a model's results below the output path."""
    return output_path / sanitize(model_name)


def sanitize(name: str) -> str:
    """Return a name that is safe as a folder's, the way lm-eval does it."""
    return re.sub(r"[\"<>:/\|\\?\*\[\]]+", "__", name)


def write_result(
    output_path: Path, model_name: str, harness: Mapping[str, Any], lowbit: Mapping[str, Any], moment: datetime
) -> Path:
    """Write one result: the harness's dictionary unchanged plus the key `lowbit`, and its samples beside it.

    Args:
        output_path: A folder, or a `.json` file whose name gets the date.
        model_name: What the folder is named after.
        harness: lm-eval's result, with or without samples.
        lowbit: Everything lowbit adds.
        moment: When the run ended; part of the file's name.

    Returns:
        The result's file.

    Raises:
        LowbitError: The file cannot be written.
    """
    date = moment.isoformat().replace(":", "-")
    if output_path.suffix == ".json":
        folder, name = output_path.parent, f"{output_path.stem}_{date}.json"
    else:
        folder, name = result_folder(output_path, model_name), f"results_{date}.json"
    content = {key: value for key, value in harness.items() if key != "samples"}
    text = json.dumps({**content, LOWBIT_KEY: finite(lowbit)}, indent=2, ensure_ascii=False, default=str) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task, samples in harness.get("samples", {}).items():
            lines = "".join(json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
            _write_new(folder / f"samples_{sanitize(task)}_{date}.jsonl", lines)
        return _write_new(folder / name, text)
    except OSError as error:
        raise LowbitError(f"the result cannot be written to {folder}: {error}") from error


def finite(value: Any) -> Any:
    """Return a JSON value in which numbers that JSON cannot hold are strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _write_new(path: Path, text: str) -> Path:
    temporary = temporary_name(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _publish(temporary: Path, path: Path) -> None:
    """Give a whole file its name; unlike a rename, this fails where a result of the same instant is."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # Some file systems have no hard links; there the name is reserved first.
        path.open("x").close()
        temporary.replace(path)
