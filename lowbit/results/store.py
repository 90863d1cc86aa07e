"""Reads a results directory: every result that `bench`, `eval` or lm-eval itself wrote there, and what is broken."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lowbit.errors import LowbitError
from lowbit.results.layout import require_layout
from lowbit.results.metrics import Metric, read_metrics
from lowbit.results.record import LOWBIT_KEY, samples_name
from lowbit.untrusted import inside, is_file, is_folder, parse_json, read_bytes

Role = Literal["parent", "quantized", "other"]
PARENT_METHOD = "parent"
WORK_FOLDERS = frozenset({"checkpoints", "parents"})
"""Folders in which `bench` keeps what it works with; a model of such a name still has its `results_*.json` there."""
RESULT_PREFIX = "results_"
IDENTITY_LENGTH = 8
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})T(\d{2})-(\d{2})-(\d{2}(?:\.\d+)?)(?:\+00-00)?$")


@dataclass(frozen=True)
class StoredResult:
    """One result file.

    Args:
        path: The file.
        harness: lm-eval's part: everything but the key `lowbit`.
        lowbit: What lowbit added; empty for lm-eval's own files.
    """

    path: Path
    harness: Mapping[str, Any]
    lowbit: Mapping[str, Any]

    @property
    def role(self) -> Role:
        """Whether it is of an unquantized parent, of a quantized model, or of unknown making (lm-eval's own file)."""
        role = self.lowbit.get("role")
        if role == "evaluation":
            return "quantized" if self.lowbit.get("quantized") else "parent"
        return role if role in ("parent", "quantized") else "other"

    @property
    def method(self) -> str:
        """The method; `parent` for a parent, the model's name for a file without the key `lowbit`."""
        if self.role == "parent":
            return PARENT_METHOD
        if self.role == "other":
            return str(self.harness.get("model_name") or self.path.parent.name)
        return str(self.lowbit.get("method") or self._recipe.get("method") or "unknown")

    @property
    def model(self) -> str:
        """The parent's name; of a file without the key `lowbit`, the last part of the model's own name."""
        name = (self.lowbit.get("parent") or {}).get("name")
        return str(name) if name else Path(str(self.harness.get("model_name") or self.path.parent.name)).name

    @property
    def seed(self) -> int | None:
        """The seed of the quantization; `None` where nothing was drawn or nothing is known."""
        seed = self.lowbit.get("seed", self._recipe.get("seed"))
        return seed if isinstance(seed, int) and self.role == "quantized" else None

    @property
    def recipe_sha256(self) -> str | None:
        """The hash of the whole recipe; `None` where it is not known."""
        sha256 = self.lowbit.get("recipe_sha256")
        return sha256 if isinstance(sha256, str) else None

    @cached_property
    def date(self) -> datetime:
        """When the run ended, in UTC, as the file's name says; else lm-eval's start of the run, else the file's age."""
        named = date_in_name(self.path.stem)
        if named is not None:
            return named
        started = self.harness.get("date")
        seconds = started if isinstance(started, int | float) else self.path.stat().st_mtime
        return datetime.fromtimestamp(seconds, UTC)

    @property
    def bits(self) -> Mapping[str, Any] | None:
        """The bits report: nominal, quantized-layer and whole-file bits a weight, bytes, and their items."""
        bits = self.lowbit.get("bits")
        return bits if isinstance(bits, Mapping) else None

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric of every task."""
        return tuple(read_metrics(self.harness))

    @cached_property
    def samples(self) -> Mapping[str, Path]:
        """The file of logged samples of each task that has one."""
        date = _date_text(self.path.stem)
        if date is None:
            return {}
        beside = {path.name for path in self.path.parent.glob("samples_*.jsonl")}
        names = {task: samples_name(task, date) for task in self.harness.get("results", {})}
        return {task: self.path.with_name(name) for task, name in names.items() if name in beside}

    @cached_property
    def identity(self) -> str:
        """A short name of this run that stays when the directory is moved: eight hexadecimal digits."""
        parts = (self.path.name, self.role, self.method, self.model, self.recipe_sha256, self.harness.get("date"))
        return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:IDENTITY_LENGTH]

    @property
    def _recipe(self) -> Mapping[str, Any]:
        recipe = self.lowbit.get("recipe")
        return recipe if isinstance(recipe, Mapping) else {}


@dataclass(frozen=True)
class ResultFolder:
    """What lies in a results directory.

    Args:
        folder: The directory.
        results: Its results, oldest first.
        unreadable: Files that look like results and are none, each with the reason.
    """

    folder: Path
    results: tuple[StoredResult, ...]
    unreadable: tuple[tuple[Path, str], ...]

    def find(self, identity: str) -> StoredResult:
        """Return the result with an identity, of which the first digits are enough where no other has them.

        Raises:
            LowbitError: No result has it, or several have.
        """
        found = [result for result in self.results if result.identity.startswith(identity.lower())]
        if len(found) == 1:
            return found[0]
        if not found:
            known = ", ".join(f"{result.identity} ({result.model} {result.method})" for result in self.results[-10:])
            raise LowbitError(
                f"no result in {self.folder} has the identity {identity!r}; the latest are: {known or 'none'}"
                f"{self.told_unreadable}"
            )
        if len({result.identity for result in found}) == 1:
            paths = ", ".join(str(result.path) for result in found)
            raise LowbitError(f"{identity!r} is the identity of copies of one result: {paths}; give the file's path")
        several = ", ".join(f"{result.identity} ({result.model} {result.method})" for result in found)
        raise LowbitError(f"{identity!r} begins the identities of several results: {several}; give more digits")

    @property
    def told_unreadable(self) -> str:
        """What to add to a message about a result that is not found; empty where every file could be read."""
        several = [f"{path} {reason}" for path, reason in self.unreadable]
        return f"; not readable: {', '.join(several)}" if several else ""


def read_results(folder: Path) -> ResultFolder:
    """Read every result below a directory; a broken file is listed as unreadable and stops nothing.

    Args:
        folder: A results directory, as given to `--output_path`; or a single result file.

    Raises:
        LowbitError: There is no such directory.
    """
    if not (is_folder(folder) or is_file(folder)):
        raise LowbitError(f"there is no results directory {folder}; `lowbit bench -o {folder}` makes one")
    results: list[StoredResult] = []
    unreadable: list[tuple[Path, str]] = []
    for path in _result_files(folder):
        try:
            _require_inside(path, folder)
            result = read_result(path)
        except LowbitError as error:
            if _is_named_as_result(path):
                unreadable.append((path, str(error)))
        else:
            if result is not None:
                results.append(result)
    ordered = sorted(results, key=lambda result: (result.date, str(result.path)))
    return ResultFolder(folder, tuple(ordered), tuple(unreadable))


def read_neighbours(folder: Path) -> tuple[StoredResult, ...]:
    """Read the results in a run's folder and in the one above, and nowhere below; broken ones are left out.

    Args:
        folder: The folder that a run lies in.
    """
    found: list[StoredResult] = []
    for path in sorted(path for place in {folder, folder.parent} for path in place.glob("*.json")):
        with suppress(LowbitError):
            _require_inside(path, path.parent)
            result = read_result(path) if _is_named_as_result(path) and is_file(path) else None
            found += [] if result is None else [result]
    return tuple(found)


def read_result(path: Path) -> StoredResult | None:
    """Read one result file; `None` where a JSON file is something else.

    Raises:
        LowbitError: It cannot be read, or it is no whole JSON file.
    """
    try:
        text = read_bytes(path)
        content = parse_json(text)
    except OSError as error:
        raise LowbitError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        reason = f"is no whole JSON file: {error}" if text else "is empty"
        raise LowbitError(f"{reason}; delete it, and run its command again") from error
    if not _is_result(content):
        if path.name.startswith(RESULT_PREFIX):
            raise LowbitError("has no section `results` of tasks and their metrics")
        return None
    require_layout(content)
    added = content.pop(LOWBIT_KEY, None)
    result = StoredResult(path, content, added or {})
    try:
        _ = result.metrics, result.date, result.identity
    except (TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise LowbitError(f"is not laid out as a result: {error}") from error
    return result


def date_in_name(stem: str) -> datetime | None:
    """Return the date that the name of a result file ends with; `None` where there is none."""
    match = _DATE.search(stem)
    if match is None:
        return None
    day, hour, minute, second = match.groups()
    try:
        return datetime.fromisoformat(f"{day}T{hour}:{minute}:{second}").replace(tzinfo=UTC)
    except ValueError:
        return None


def _date_text(stem: str) -> str | None:
    match = _DATE.search(stem)
    return None if match is None else match.group(0)


def _result_files(folder: Path) -> Iterator[Path]:
    """Yield the JSON files that may be results: not those of checkpoints, kept parents and unfinished writing."""
    if not is_folder(folder):
        yield folder
        return
    for path in sorted(folder.rglob("*.json")):
        places = path.relative_to(folder).parts[:-1]
        working = any(place in WORK_FOLDERS or place.startswith(".") for place in places)
        # What is named as a result and is a pipe or a broken link is yielded too, so that it is named as unreadable.
        if (is_file(path) or _is_named_as_result(path)) and (not working or path.name.startswith(RESULT_PREFIX)):
            yield path


def _require_inside(path: Path, folder: Path) -> None:
    """Refuse a link that leads out of the folder whose results were asked for; the file that was named is followed."""
    if path != folder and path.is_symlink() and not inside(path, folder):
        raise LowbitError("is a link to a file outside the directory; copy that file there to have it read")


def _is_named_as_result(path: Path) -> bool:
    return path.name.startswith(RESULT_PREFIX) or date_in_name(path.stem) is not None


def _is_result(content: object) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        return False
    return all(isinstance(values, dict) for values in content["results"].values())
