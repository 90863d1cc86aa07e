"""Per-document values out of lm-eval's files of logged samples, and how each metric is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import LowbitError
from lowbit.results.store import StoredResult
from lowbit.untrusted import MEBIBYTE, inside, open_ordinary, parse_json

Values = NDArray[np.float64]
Aggregate = Callable[[Values, Values], Values]
"""Makes a metric of values and weights, both [..., documents], along the last axis."""

WORDS_AND_BYTES = ("word_perplexity", "byte_perplexity", "bits_per_byte")
LARGEST_FILE = 1024 * MEBIBYTE
"""Bytes of a file of logged samples."""
LONGEST_LINE = 16 * MEBIBYTE
"""Bytes of one sample."""
_IDENTIFYING = frozenset({"doc_id", "doc_hash", "prompt_hash", "filter"})
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class DocumentValues:
    """One metric's value of each document.

    Args:
        values: What the metric is made of: a score, or a log-likelihood; float64 [documents].
        weights: What a log-likelihood is divided by: words or bytes; ones elsewhere; float64 [documents].
        aggregate: Makes the metric of them.
    """

    values: Values
    weights: Values
    aggregate: Aggregate

    @property
    def total(self) -> float:
        """The metric of all documents."""
        return float(self.aggregate(self.values, self.weights))

    @property
    def is_binary(self) -> bool:
        """Whether every document is simply right or wrong."""
        return self.aggregate is mean and bool(np.isin(self.values, (0.0, 1.0)).all())


@dataclass(frozen=True)
class TaskSamples:
    """The logged samples of one task under one filter, in the order of their documents.

    Args:
        documents: What identifies each document and what the model was asked: its number, its hash, the prompt's.
        metrics: Per-document values by metric name.
        without_values: Metrics that are no function of one value a document, with the reason.
    """

    documents: tuple[tuple[int, str, str], ...]
    metrics: Mapping[str, DocumentValues]
    without_values: Mapping[str, str]


def mean(values: Values, weights: Values) -> Values:
    """The mean, which lm-eval takes of accuracies and other scores."""
    return np.asarray(np.mean(values, axis=-1))


def perplexity(values: Values, weights: Values) -> Values:
    """Word or byte perplexity: the exponential of the negative log-likelihood per word or byte of all documents."""
    return np.asarray(np.exp(np.minimum(-np.sum(values, axis=-1) / np.sum(weights, axis=-1), 709.0)))


def bits_per_byte(values: Values, weights: Values) -> Values:
    """The negative log-likelihood per byte of all documents, in bits."""
    return np.asarray(-np.sum(values, axis=-1) / np.sum(weights, axis=-1) / math.log(2))


def read_task_samples(result: StoredResult, task: str) -> dict[str, TaskSamples]:
    """Read the logged samples of a task, by filter.

    Raises:
        LowbitError: There are none, or the file is damaged.
    """
    path = result.samples.get(task)
    if path is None:
        raise LowbitError(
            f"{result.path} has no logged samples of {task} beside it: run it again with --log_samples, and keep the "
            "samples_*.jsonl files in the folder of the result"
        )
    by_filter: dict[str, list[dict[str, Any]]] = {}
    for sample in _read_lines(path, _IDENTIFYING | {metric.name for metric in result.metrics if metric.task == task}):
        by_filter.setdefault(str(sample.get("filter", "none")), []).append(sample)
    return {name: _task_samples(result, task, name, samples, path) for name, samples in by_filter.items()}


def _read_lines(path: Path, wanted: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Yield the wanted entries of each sample: a file of logged prompts is far larger than the numbers in it."""
    number = 0
    try:
        if not inside(path, path.parent):
            raise ValueError("it is a link to a file outside its folder")
        with open_ordinary(path, LARGEST_FILE) as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise ValueError(f"it has more than {LONGEST_LINE} bytes, which is the limit of a line")
                if line.strip():
                    yield _entries(parse_json(line), wanted)
    except OSError as error:
        raise LowbitError(f"the logged samples in {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        where = f", line {number}," if number else ""
        raise LowbitError(f"the logged samples in {path}{where} cannot be read: {error}") from error


def _entries(sample: Any, wanted: frozenset[str]) -> dict[str, Any]:
    if not isinstance(sample, dict):
        raise ValueError(f"a sample is an object, not {type(sample).__name__}")
    return {key: value for key, value in sample.items() if key in wanted}


def _task_samples(
    result: StoredResult, task: str, filter_name: str, samples: list[dict[str, Any]], path: Path
) -> TaskSamples:
    try:
        ordered = sorted(samples, key=_number)
        documents = tuple(
            (_number(sample), str(sample.get("doc_hash", "")), str(sample.get("prompt_hash", ""))) for sample in ordered
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LowbitError(f"the logged samples in {path} do not name their documents: {error}") from error
    metrics: dict[str, DocumentValues] = {}
    without: dict[str, str] = {}
    reported = {m.name: m.value for m in result.metrics if m.task == task and m.filter == filter_name}
    for name, value in reported.items():
        found = _document_values(name, [sample.get(name) for sample in ordered])
        if found is None:
            without[name] = "its samples hold no number a document"
        elif not math.isclose(found.total, value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            without[name] = f"the samples give {found.total:.6g} where the result says {value:.6g}"
        else:
            metrics[name] = found
    return TaskSamples(documents, metrics, without)


def _number(sample: Mapping[str, Any]) -> int:
    number = sample["doc_id"]
    if not isinstance(number, int):
        raise TypeError(f"doc_id is a whole number, not {type(number).__name__}")
    return number


def _document_values(name: str, logged: list[Any]) -> DocumentValues | None:
    """Return what was logged of a metric as arrays; `None` where it is anything but one number or pair a document."""
    try:
        array = np.asarray(logged, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if array.size == 0 or not np.isfinite(array).all():
        return None
    if name in WORDS_AND_BYTES and array.ndim == 2 and array.shape[1] == 2:
        return DocumentValues(array[:, 0], array[:, 1], bits_per_byte if name == "bits_per_byte" else perplexity)
    if array.ndim != 1:
        return None
    ones = np.ones_like(array)
    if name == "perplexity":
        return DocumentValues(array, ones, perplexity)
    if name == "token_perplexity":
        # A window's perplexity was logged; all windows are equally long, so that their log-likelihoods are averaged.
        return DocumentValues(-np.log(array), ones, perplexity)
    return DocumentValues(array, ones, mean)
