"""Reads metrics out of a result in lm-eval's layout, and relates a quantized model's to its parent's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PREFERRED = ("acc", "exact_match", "em", "f1", "token_perplexity", "word_perplexity", "perplexity", "bleu", "rouge1")


@dataclass(frozen=True)
class Metric:
    """One metric of one task.

    Args:
        task: The task's name; of a token perplexity it carries the context length.
        name: The metric's name, without the harness's filter.
        filter: The harness's filter, `none` where there is no other.
        value: Its value.
        stderr: Its standard error, or `None`.
        higher_is_better: Its direction.
    """

    task: str
    name: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool

    @property
    def key(self) -> str:
        """The metric's key in the harness's result."""
        return f"{self.name},{self.filter}"


@dataclass(frozen=True)
class Recovery:
    """What is left of the parent's quality, in percent.

    Args:
        percent: 100 * quantized / parent for scores, 100 * parent / quantized for perplexities.
        above_chance: 100 * (quantized - chance) / (parent - chance) for accuracies; `None` for others, or where the
            parent is no better than chance.
    """

    percent: float | None
    above_chance: float | None


def read_metrics(results: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield every metric of a result in lm-eval's layout."""
    directions = results.get("higher_is_better", {})
    for task, values in {**results.get("results", {}), **results.get("groups", {})}.items():
        for key, value in values.items():
            name, comma, filter_name = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{name}_stderr,{filter_name}")
            direction = (directions.get(task) or {}).get(name)
            higher = direction if isinstance(direction, bool) else "perplexity" not in name
            error = float(stderr) if isinstance(stderr, int | float) else None
            yield Metric(task, name, filter_name, float(value), error, higher)


def primary_metrics(results: Mapping[str, Any]) -> dict[str, Metric]:
    """Return the metric of each task that a table shows: accuracy or perplexity where there is one, else the first."""
    by_task: dict[str, list[Metric]] = {}
    for metric in read_metrics(results):
        by_task.setdefault(metric.task, []).append(metric)
    return {task: min(metrics, key=_preference) for task, metrics in by_task.items()}


def _preference(metric: Metric) -> int:
    return PREFERRED.index(metric.name) if metric.name in PREFERRED else len(PREFERRED)


def recovery(parent: Metric, quantized: Metric, chance: float) -> Recovery:
    """Relate a metric to the parent's.

    Args:
        parent: The parent's metric.
        quantized: The same metric of the quantized model.
        chance: The accuracy of blind choice; 0 where there is none.
    """
    if not parent.higher_is_better:
        return Recovery(_percent(parent.value, quantized.value), None)
    above = None
    if quantized.name.startswith("acc") and parent.value > chance:
        above = _percent(quantized.value - chance, parent.value - chance)
    return Recovery(_percent(quantized.value, parent.value), above)


def _percent(part: float, whole: float) -> float | None:
    if not (math.isfinite(part) and math.isfinite(whole)) or whole == 0:
        return None
    return 100 * part / whole


def recovery_table(
    parent: Mapping[str, Any], quantized: Mapping[str, Any], chance: Mapping[str, float]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return parent, quantized and recovery of every metric both results have, by task and metric key."""
    before = {(metric.task, metric.key): metric for metric in read_metrics(parent)}
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for metric in read_metrics(quantized):
        ancestor = before.get((metric.task, metric.key))
        if ancestor is None:
            continue
        found = recovery(ancestor, metric, chance.get(metric.task, 0.0))
        table.setdefault(metric.task, {})[metric.key] = {
            "parent": ancestor.value,
            "quantized": metric.value,
            "recovery_percent": found.percent,
            "recovery_above_chance_percent": found.above_chance,
        }
    return table
