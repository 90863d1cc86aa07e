"""Results of the unquantized parent, kept on disk so that it is evaluated once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable

from lowbit.durable import TEMPORARY_SUFFIX, make_directory, one_at_a_time, open_whole, write_text
from lowbit.evaluation.corpora import PerplexityTask
from lowbit.evaluation.prepare import PreparedTasks, documents_of
from lowbit.recipe.evaluation import EvaluationSettings
from lowbit.untrusted import LARGEST_JSON, open_ordinary, parse_json, read_json

logger = logging.getLogger(__name__)

_FORMAT = 2
_LARGEST_SAMPLES = 1 << 36
"""Bytes; more than any evaluation logs. Lines are read one by one, each as long as a JSON file may be."""
# Where an answer's last digits may depend on them.
_PACKAGES = ("lm_eval", "transformers", "torch", "tokenizers", "datasets")
# Settings that change neither documents, prompts nor answers, or that the hash of the documents stands for.
_WITHOUT_EFFECT = frozenset({"data_dir", "include_path", "use_cache", "cache_requests", "write_out", "check_integrity"})


def document_hashes(prepared: PreparedTasks, settings: EvaluationSettings) -> dict[str, str]:
    """The sha256 of the documents that each task evaluates, and of those that its few-shot examples are drawn from."""
    hashes: dict[str, str] = {}
    for name, task in prepared.tasks.items():
        digest = hashlib.sha256()
        for index, document in documents_of(task, name, settings):
            digest.update(f"{index} {_to_json(document)}\n".encode())
        if task.get_config("num_fewshot"):
            sampler = getattr(task, "sampler", None)
            digest.update(_to_json(list(getattr(sampler, "df", []))).encode())
        hashes[name] = digest.hexdigest()
    for perplexity in prepared.perplexities:
        digest = hashlib.sha256(perplexity.text.encode())
        digest.update(_chosen_windows(perplexity, settings).encode())
        hashes[perplexity.name] = digest.hexdigest()
    return hashes


def _chosen_windows(perplexity: PerplexityTask, settings: EvaluationSettings) -> str:
    """Return the windows that are asked for by number, as text; empty where none are."""
    samples = settings.samples or {}
    if perplexity.name in samples:
        return repr(samples[perplexity.name])
    # A context length that comes from the model is not known here: it may be any of those that are named.
    named = {name: windows for name, windows in samples.items() if name.partition("@")[0] == perplexity.base_name}
    return repr(sorted(named.items())) if named else ""


def cache_key(model_sha: str, prepared: PreparedTasks, settings: EvaluationSettings, dtype: str) -> str:
    """The name under which a parent's result is kept: a hash of all that decides it.

    Args:
        model_sha: What `lowbit.models.checkpoint.model_hash` returns.
        prepared: The tasks.
        settings: The evaluation's settings.
        dtype: The type in which the parent computes, such as `float32`.
    """
    described = {
        "format": _FORMAT,
        "model": model_sha,
        "dtype": dtype,
        "settings": settings.model_dump(mode="json", exclude=set(_WITHOUT_EFFECT)),
        "tasks": {name: task.dump_config() for name, task in prepared.tasks.items()},
        "documents": document_hashes(prepared, settings),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }
    return hashlib.sha256(_to_json(described).encode()).hexdigest()


def _to_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=handle_non_serializable, ensure_ascii=False)


@dataclass(frozen=True)
class ParentCache:
    """Parents' results in a folder: one JSON file each, and beside it one of logged samples, a line each.

    Args:
        folder: Where the files are; made when the first one is written.
    """

    folder: Path

    def path(self, key: str) -> Path:
        """The file of a result."""
        return self.folder / f"{key}.json"

    def samples_path(self, key: str) -> Path:
        """The file of a result's logged samples, which for one large task are tens of megabytes."""
        return self.folder / f"{key}.samples.jsonl"

    @contextmanager
    def alone(self, key: str, name: str) -> Iterator[None]:
        """Keep other processes from evaluating the same parent; they wait, and find the result afterwards.

        Args:
            key: The result's key.
            name: What the parent is called, for the message to those who wait.

        Raises:
            LowbitError: The folder cannot be written.
        """
        make_directory(self.folder)
        lock = self.folder / f"{key}.lock"
        with one_at_a_time(lock, f"evaluating the parent {name}"):
            for leftover in self.folder.glob(f"{key}.*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            yield
            lock.unlink(missing_ok=True)  # Only where the result is kept: nobody evaluates it any more.

    def load(self, key: str) -> dict[str, Any] | None:
        """The result kept under a key; None when there is none, or when a file is damaged (with a warning)."""
        path = self.path(key)
        try:
            stored = read_json(path)
            results, kept = stored["results"], stored["samples"]
            if stored["key"] != key or stored["sha256"] != _sha256(results, kept):
                raise ValueError("its content does not match its own hash")
            if kept is not None:
                path = self.samples_path(key)
                results["samples"] = _read_samples(path, kept)
        except FileNotFoundError:
            if path != self.path(key):
                logger.warning("%s is missing; the parent is evaluated again", path)
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the parent's result in %s is damaged and will be made again: %s", path, error)
            return None
        return dict(results)

    def save(self, key: str, results: Mapping[str, Any]) -> Path:
        """Keep a result, replacing what was there, as a whole or not at all.

        Raises:
            LowbitError: The folder cannot be written.
        """
        make_directory(self.folder)
        samples = results.get("samples")
        kept = None if samples is None else _write_samples(self.samples_path(key), samples)
        rest = {name: value for name, value in results.items() if name != "samples"}
        path = self.path(key)
        write_text(path, _to_json({"key": key, "sha256": _sha256(rest, kept), "samples": kept, "results": rest}))
        return path


def _sha256(results: Any, kept: Any) -> str:
    return hashlib.sha256(_to_json([results, kept]).encode()).hexdigest()


def _write_samples(path: Path, samples: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Write logged samples, and return the tasks in their order and the file's sha256."""
    digest = hashlib.sha256()
    with open_whole(path) as file:
        for task, entries in samples.items():
            for entry in entries:
                line = f"{_to_json([task, entry])}\n".encode()
                digest.update(line)
                file.write(line)
    return {"sha256": digest.hexdigest(), "tasks": list(samples)}


def _read_samples(path: Path, kept: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Read logged samples back.

    Raises:
        OSError: There is no such file, or it is no ordinary one.
        ValueError: It is not what was written.
    """
    digest = hashlib.sha256()
    samples: dict[str, list[Any]] = {task: [] for task in kept["tasks"]}
    with open_ordinary(path, _LARGEST_SAMPLES) as file:
        while line := file.readline(LARGEST_JSON):
            digest.update(line)
            task, entry = parse_json(line)
            samples[task].append(entry)
    if digest.hexdigest() != kept["sha256"]:
        raise ValueError("its content does not match its hash")
    return samples
