"""Checkpoints of a training: what it needs to go on as if it had not stopped, and its best state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lowbit.durable import TEMPORARY_SUFFIX, make_directory, write_json, write_tensors
from lowbit.errors import LowbitError
from lowbit.untrusted import require_ordinary

RECORD_FILE = "training.json"


class TrainingStore:
    """A folder with the tensors of the last checkpoint, those of the best state, and a record that names both files.

    The record is replaced by one rename, after the files that it names; files that it does not name are leftovers.

    Args:
        folder: Where everything lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Store a checkpoint.

        Args:
            step: Steps that were taken.
            tensors: Parameters and the optimizer's moments, by name.
            record: Plain JSON values; `best_step` names the state that `save_best` stored.
        """
        make_directory(self.folder)
        write_tensors(self._tensors(step), tensors)
        write_json(self.folder / RECORD_FILE, {**record, "step": step})
        self._remove_leftovers()

    def save_best(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Store the parameters of the best state so far; it counts once a record names it."""
        make_directory(self.folder)
        write_tensors(self._best(step), tensors)

    def record(self) -> dict[str, Any] | None:
        """Return the last checkpoint's record, or `None` before the first.

        Raises:
            LowbitError: It is damaged.
        """
        file = self.folder / RECORD_FILE
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return {**found, "step": int(found["step"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LowbitError(f"{file} cannot be read: {error}; delete {self.folder} to train anew") from error

    def seconds(self) -> float:
        """Return how long the training had taken at its last checkpoint, interrupted runs included."""
        return float((self.record() or {}).get("seconds", 0.0))

    def tensors(self, step: int) -> dict[str, Tensor]:
        """Return the tensors of the checkpoint that was stored at a step.

        Raises:
            LowbitError: The file is absent or damaged.
        """
        return self._load(self._tensors(step))

    def best(self, step: int) -> dict[str, Tensor]:
        """Return the parameters of the best state, which was reached at a step.

        Raises:
            LowbitError: The file is absent or damaged.
        """
        return self._load(self._best(step))

    def _load(self, file: Path) -> dict[str, Tensor]:
        try:
            require_ordinary(file)
            return load_file(file)
        except (OSError, SafetensorError, ValueError) as error:
            raise LowbitError(f"{file} cannot be read: {error}; delete {self.folder} to train anew") from error

    def best_file(self, step: int) -> Path:
        """Return where the parameters of the best state lie."""
        return self._best(step)

    def _tensors(self, step: int) -> Path:
        return self.folder / f"step-{step:07d}.safetensors"

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:07d}.safetensors"

    def _remove_leftovers(self) -> None:
        record = self.record() or {}
        named = {self._tensors(record.get("step", -1)), self._best(record.get("best_step", -1))}
        for file in (*self.folder.glob("*.safetensors"), *self.folder.glob(f"*{TEMPORARY_SUFFIX}")):
            if file not in named:
                file.unlink(missing_ok=True)
