"""Compares runs on the documents that all of them answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lowbit.errors import LowbitError
from lowbit.results.metrics import Metric
from lowbit.results.protocol import TaskProtocol, family, task_protocol
from lowbit.results.samples import DocumentValues, TaskSamples, read_task_samples
from lowbit.results.significance import (
    RESAMPLES,
    McNemar,
    PairedDifference,
    holm,
    mcnemar_exact,
    paired_difference,
)
from lowbit.results.store import StoredResult

LEVEL = 0.05
FEW_DOCUMENTS = 20
_ASKED_ALIKE = frozenset({"version", "few-shot", "data", "prompt", "system instruction", "generation"})


@dataclass(frozen=True)
class Comparison:
    """One metric of one task, of a run against the first run.

    Args:
        task: The task.
        metric: The metric's name, with the harness's filter where there is one.
        higher_is_better: Its direction.
        first: The first run.
        second: The run that is compared with it.
        values: The metric of the first and of the second run.
        documents: How many documents both answered.
        difference: The difference, its interval, and its p value by permutation.
        mcnemar: The exact test, where each document is right or wrong.
        p_corrected: The p value by Holm's correction over all runs that are compared with the first; with one run, the
            p value itself.
    """

    task: str
    metric: str
    higher_is_better: bool
    first: StoredResult
    second: StoredResult
    values: tuple[float, float]
    documents: int
    difference: PairedDifference
    mcnemar: McNemar | None
    p_corrected: float

    @property
    def test(self) -> str:
        """The test that the p value is of."""
        return "permutation" if self.mcnemar is None else "McNemar exact"

    @property
    def p_value(self) -> float:
        """McNemar's where it applies, else the permutation test's."""
        return self.difference.p_value if self.mcnemar is None else self.mcnemar.p_value

    @property
    def verdict(self) -> str:
        """`better` or `worse` than the first run at the 5 % level, else `no difference shown`."""
        if self.p_corrected >= LEVEL or self.difference.difference == 0:
            return "no difference shown"
        return "better" if (self.difference.difference > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class ComparedRuns:
    """Everything that was found.

    Args:
        runs: The runs, the first of which the others were compared with.
        rows: By task and metric, and by run within.
        notes: What was left out, and why.
        warnings: Where a difference may be no more than the choice of a seed.
    """

    runs: tuple[StoredResult, ...]
    rows: tuple[Comparison, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def compare_runs(
    runs: Sequence[StoredResult],
    others: Sequence[StoredResult] = (),
    tasks: Sequence[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ComparedRuns:
    """Compare every run with the first one, on the same documents.

    Args:
        runs: Two or more.
        others: The results beside them, among which runs of the same recipes with other seeds are looked for.
        tasks: The tasks to compare; none means those that all runs have.
        seed: Decides the draws.
        resamples: Number of draws.

    Raises:
        LowbitError: Fewer than two runs, no common task, no samples, other documents, or another protocol.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise LowbitError("give two or more different runs to compare")
    common = _common_tasks(runs, tasks)
    notes: list[str] = []
    if not tasks:
        left_out = sorted({task for run in runs for task in run.samples or run.harness["results"]} - set(common))
        notes += [f"{task} is not compared: not every run has it" for task in left_out]
    rows: list[Comparison] = []
    for task in common:
        rows.extend(_compare_task(runs, task, seed, resamples, notes))
    notes += [
        f"{task} has {documents} documents: the interval is rough, and may be too narrow"
        for task, documents in {row.task: row.documents for row in rows}.items()
        if documents < FEW_DOCUMENTS
    ]
    if not rows:
        raise LowbitError(f"no metric of {', '.join(common)} can be compared: {'; '.join(notes)}")
    warnings = _seed_warnings(rows, [*others, *runs])
    return ComparedRuns(tuple(runs), tuple(rows), tuple(notes), tuple(dict.fromkeys(warnings)))


def _common_tasks(runs: Sequence[StoredResult], wanted: Sequence[str]) -> list[str]:
    """Return the tasks that all runs evaluated, in the first run's order; groups have no documents of their own."""
    names = [[task for task in run.harness["results"] if _is_task(run, task)] for run in runs]
    common = [task for task in names[0] if all(task in others for others in names[1:])]
    missing = [task for task in wanted if task not in common]
    if missing or not common:
        listed = "; ".join(f"{run.identity}: {', '.join(has) or 'none'}" for run, has in zip(runs, names, strict=True))
        what = f"the task {missing[0]}" if missing else "a task"
        raise LowbitError(f"the runs do not all have {what}; they have {listed}")
    return list(wanted) or common


def _is_task(run: StoredResult, name: str) -> bool:
    return name in run.harness.get("versions", {}) and name not in run.harness.get("groups", {})


def _compare_task(
    runs: Sequence[StoredResult], task: str, seed: int, resamples: int, notes: list[str]
) -> Iterator[Comparison]:
    samples = [read_task_samples(run, task) for run in runs]
    for run, found in zip(runs[1:], samples[1:], strict=True):
        _require_same_questions(runs[0], run, task)
        for name in samples[0].keys() & found.keys():
            _require_same_documents(runs[0], run, task, samples[0][name], found[name])
    for name, base in samples[0].items():
        if not all(name in found for found in samples[1:]):
            notes.append(f"{task}: the filter {name} is not compared: not every run has it")
            continue
        matching = [found[name] for found in samples[1:]]
        reasons = {metric: reason for found in (base, *matching) for metric, reason in found.without_values.items()}
        notes.extend(f"{task} {metric} is not compared: {reason}" for metric, reason in reasons.items())
        for metric in base.metrics:
            if metric not in reasons and all(metric in found.metrics for found in matching):
                label = metric if name == "none" else f"{metric},{name}"
                all_values = [found.metrics[metric] for found in (base, *matching)]
                higher = _metric(runs[0], task, metric, name).higher_is_better
                yield from _compare_metric(runs, task, label, higher, all_values, seed, resamples)


def _metric(run: StoredResult, task: str, name: str, filter_name: str) -> Metric:
    return next(m for m in run.metrics if (m.task, m.name, m.filter) == (task, name, filter_name))


def _compare_metric(
    runs: Sequence[StoredResult],
    task: str,
    metric: str,
    higher: bool,
    values: Sequence[DocumentValues],
    seed: int,
    resamples: int,
) -> list[Comparison]:
    first = values[0]
    rows = []
    for run, second in zip(runs[1:], values[1:], strict=True):
        binary = first.is_binary and second.is_binary
        exact = mcnemar_exact(first.values, second.values) if binary else None
        drawn = paired_difference(first, second, seed, resamples)
        pair = (first.total, second.total)
        row = Comparison(task, metric, higher, runs[0], run, pair, len(first.values), drawn, exact, 1.0)
        rows.append(row)
    corrected = holm([row.p_value for row in rows])
    return [replace(row, p_corrected=p_value) for row, p_value in zip(rows, corrected, strict=True)]


def _require_same_questions(first: StoredResult, second: StoredResult, task: str) -> None:
    one, other = task_protocol(first, task), task_protocol(second, task)
    differing = _differing(one, other)
    if differing:
        raise LowbitError(
            f"{task} was not asked the same way in {first.identity} ({one.described(differing) or 'without'}) and in "
            f"{second.identity} ({other.described(differing) or 'without'}): evaluate both under one protocol"
        )


def _differing(one: TaskProtocol, other: TaskProtocol) -> frozenset[str]:
    """Return the settings in which two protocols differ; what one file does not say differs from nothing."""
    before, now = dict(one.settings), dict(other.settings)
    unknown = {name for name in ("data", "prompt") if name not in before or name not in now}
    names = _ASKED_ALIKE - unknown
    # A smaller number of documents is told apart below, by the documents themselves.
    same_number = before.get("documents") == now.get("documents")
    names = names if same_number else names - {"data"}
    return frozenset(name for name in names if before.get(name) != now.get(name))


def _require_same_documents(
    first: StoredResult, second: StoredResult, task: str, one: TaskSamples, other: TaskSamples
) -> None:
    if one.documents == other.documents:
        return
    numbers, others = {entry[0] for entry in one.documents}, {entry[0] for entry in other.documents}
    if len(one.documents) != len(other.documents) or numbers != others:
        raise LowbitError(
            f"{task}: {first.identity} answered {len(one.documents)} documents and {second.identity} "
            f"{len(other.documents)}, {len(numbers & others)} of them with the same number: evaluate both with the "
            "same --limit or --samples"
        )
    pairs = list(zip(one.documents, other.documents, strict=True))
    texts = sum(a[1] != b[1] for a, b in pairs)
    what = f"{texts} of {len(pairs)} documents are others" if texts else "the documents are equal, their prompts not"
    raise LowbitError(
        f"{task}: {first.identity} and {second.identity} answered different questions: {what}; evaluate both on the "
        "same data with the same few-shot examples (--num_fewshot, --seed) and templates"
    )


def _seed_warnings(rows: Sequence[Comparison], known: Sequence[StoredResult]) -> Iterator[str]:
    """Say where runs of one recipe differ more by their seed than the compared runs differ."""
    families: dict[str, dict[int, StoredResult]] = {}
    for result in sorted(known, key=lambda found: found.date):
        if result.seed is not None:
            families.setdefault(family(result), {})[result.seed] = result
    for row in rows:
        for run in (row.first, row.second):
            if run.seed is None:
                continue
            values = _values_by_seed(list(families[family(run)].values()), run, row)
            spread, gap = max(values) - min(values), abs(row.difference.difference)
            if len(values) > 1 and spread > gap:
                yield (
                    f"{row.task} {row.metric}: {len(values)} seeds of {run.method} on {run.model} lie {spread:.4g} "
                    f"apart, more than the {gap:.4g} between {row.first.identity} and {row.second.identity}; compare "
                    "means over seeds (`lowbit leaderboard`) before calling one of them better"
                )


def _values_by_seed(results: Sequence[StoredResult], run: StoredResult, row: Comparison) -> list[float]:
    """Return a metric of the runs that were asked the same way."""
    name, _, filter_name = row.metric.partition(",")
    wanted = task_protocol(run, row.task).settings
    return [
        metric.value
        for result in results
        if task_protocol(result, row.task).settings == wanted
        for metric in result.metrics
        if (metric.task, metric.name, metric.filter) == (row.task, name, filter_name or "none")
    ]
