"""From task names to the harness's task objects, once for all models that are compared."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator_utils import get_sample_size, run_task_tests
from lm_eval.tasks import TaskManager

from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import CORPORA, PerplexityTask, load_perplexity_tasks, split_perplexity_names
from lowbit.evaluation.offline import offline_mirror
from lowbit.evaluation.task_index import make_task_manager
from lowbit.hub import Mirror, MirrorSplits
from lowbit.recipe.evaluation import EvaluationSettings


@dataclass(frozen=True)
class PreparedTasks:
    """Everything to evaluate, with its documents loaded.

    Attributes:
        items: The harness's tasks and groups at the top level, in the order asked for.
        tasks: Every single task by name, those inside groups included.
        groups: Every group by name, subgroups included.
        perplexities: The papers' token perplexities.
        data_dir: The local mirror that the documents came from.
    """

    items: tuple[Any, ...]
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    perplexities: tuple[PerplexityTask, ...]
    data_dir: str | None = None

    def data_access(self) -> AbstractContextManager[object]:
        """The mirror, for tasks that read data again while they run; nothing to do without one."""
        return offline_mirror(self.data_dir) if self.data_dir else nullcontext()


def prepare_tasks(settings: EvaluationSettings, extra_configs: Sequence[Mapping[str, Any]] = ()) -> PreparedTasks:
    """Resolve the names in the settings to task objects and load their documents.

    Args:
        settings: What to evaluate. Names are tasks, groups, tags, glob patterns, YAML files, or folders of YAML files.
        extra_configs: Configurations of tasks that are on no disk, in the harness's form with their name under
            `task`. Only those that the settings name are loaded, and they win over the harness's own.

    Raises:
        LowbitError: A name is unknown; a data set or a split that is evaluated is not there; indices in `samples`
            name no document; a task is asked for both alone and inside a group.
    """
    if not settings.tasks:
        raise LowbitError("no task to evaluate: name one or more with --tasks, for example --tasks wikitext,piqa")
    perplexity_names, names = split_perplexity_names(settings.tasks)
    extra = {str(config["task"]): dict(config) for config in extra_configs}
    unknown = [name for name in names if name not in extra]
    needs_builtin = any(not _is_file_or_folder(name) for name in unknown)
    manager = make_task_manager(
        builtin=needs_builtin, include_path=settings.include_path, metadata=settings.metadata or None
    )
    specifications = _resolve_names(names, extra, manager)
    mirror_context: AbstractContextManager[Mirror | None] = (
        offline_mirror(settings.data_dir) if settings.data_dir else nullcontext()
    )
    with mirror_context as mirror:
        items = _load_items(specifications, manager, mirror)
        loaded = _flatten(items, manager)
        for task in loaded["tasks"].values():
            _check_runnable(task, settings)
            _apply_settings(task, settings)
            _check_splits(task)
        perplexities = load_perplexity_tasks(perplexity_names, settings.data_dir)
    if settings.check_integrity:
        _check_integrity(list(loaded["tasks"]))
    prepared = PreparedTasks(tuple(items), loaded["tasks"], loaded["groups"], perplexities, settings.data_dir)
    _check_samples(prepared, settings)
    return prepared


def documents_of(task: Task, name: str, settings: EvaluationSettings) -> Iterator[tuple[int, Any]]:
    """The documents of a task that are evaluated under the settings, each with its index in the task's split."""
    indices = (settings.samples or {}).get(name)
    limit = None if indices else get_sample_size(task, settings.limit)
    for position, document in task.doc_iterator(limit=limit, samples=list(indices) if indices else None):
        yield (indices[position] if indices else position), document


def _is_file_or_folder(name: str) -> bool:
    return name.endswith(".yaml") or ("/" in name and Path(name).is_dir())


def _resolve_names(
    names: Sequence[str], extra: Mapping[str, dict[str, Any]], manager: TaskManager
) -> dict[str, str | dict[str, Any]]:
    """What the task manager has to load, by name, each once."""
    resolved: dict[str, str | dict[str, Any]] = {}
    for name in names:
        if name in extra:
            resolved[name] = extra[name]
        elif manager.task_index.get(name) is not None:
            resolved[name] = name
        elif name.endswith(".yaml") or Path(name).is_dir():
            folder, pattern = (Path(name).parent, Path(name).name) if name.endswith(".yaml") else (Path(name), "*.yaml")
            files = sorted(str(file.absolute()) for file in folder.glob(pattern))
            if not files:
                raise LowbitError(f"no task definition at {name}: expected a YAML file or a folder that holds some")
            resolved.update({file: file for file in files})
        elif matches := manager.match_tasks([name]):
            resolved.update({match: match for match in matches})
        else:
            raise LowbitError(_unknown_task(name, [*extra, *manager.all_tasks]))
    return resolved


def _unknown_task(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, [*CORPORA, *known], n=3, cutoff=0.6)
    hint = f"; the nearest known names are {', '.join(near)}" if near else ""
    return f"unknown task {name!r}{hint}; `lm-eval ls tasks` lists the harness's tasks"


def _load_items(
    specifications: Mapping[str, str | dict[str, Any]], manager: TaskManager, mirror: Mirror | None
) -> list[Task | Group]:
    """Build the tasks and groups at the top level, each task once."""
    items: dict[str, Task | Group] = {}
    for name, specification in specifications.items():
        loaded = _load_one(name, specification, manager, mirror)
        groups = loaded.get("groups", {})
        inner = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
        children = {child for group in groups.values() for child in group.child_names}
        for group_name, group in groups.items():
            if group_name not in children:
                items.setdefault(group_name, group)
        for task_name, task in loaded["tasks"].items():
            if task_name not in inner:
                items.setdefault(task_name, task)
    return list(items.values())


def _load_one(name: str, specification: str | dict[str, Any], manager: TaskManager, mirror: Mirror | None) -> Any:
    if mirror is not None:
        mirror.task = name
        mirror.opened.clear()
    try:
        return manager.load([specification])
    except LowbitError:
        raise
    except Exception as error:
        if mirror is not None and mirror.opened and mirror.opened[-1].absent:
            reason = f" ({type(error).__name__}: {error})"
            raise LowbitError(_absent_split(mirror.task or name, mirror.opened[-1]) + reason) from error
        raise LowbitError(f"task {name!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _flatten(items: Sequence[Task | Group], manager: TaskManager) -> dict[str, Any]:
    try:
        loaded = manager.load(list(items))
    except ValueError as error:
        raise LowbitError(f"the tasks cannot be evaluated together: {error}") from error
    return {"tasks": dict(loaded["tasks"]), "groups": dict(loaded.get("groups", {}))}


def _check_runnable(task: Task, settings: EvaluationSettings) -> None:
    """Refuse at once what the harness would refuse when it comes to run."""
    if getattr(task, "UNSAFE_CODE", False) and not settings.confirm_run_unsafe_code:
        raise LowbitError(
            f"task {task.task_name!r} runs code that the model writes: give --confirm_run_unsafe_code to allow it"
        )
    if getattr(task, "MULTIMODAL", False):
        raise LowbitError(f"task {task.task_name!r} needs images or sound, which causal language models do not take")


def _apply_settings(task: Task, settings: EvaluationSettings) -> None:
    """Set on a task what the harness itself sets before it evaluates; doing so again changes nothing."""
    if settings.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(settings.gen_kwargs), update=True)
    if settings.predict_only:
        task.override_metric(metric_name="bypass")
    own = task.get_config("num_fewshot")
    # A task that fixes its examples at zero keeps them so.
    if settings.num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=settings.seed[3])


def _check_splits(task: Task) -> None:
    """Refuse a task whose evaluated split, or the split of whose few-shot examples, is not in the mirror."""
    splits = getattr(task, "dataset", None)
    if not isinstance(splits, MirrorSplits):
        return
    splits.absent.clear()
    if len(task.eval_docs) == 0 or splits.absent:
        raise LowbitError(_absent_split(task.task_name, splits))
    shots = task.get_config("num_fewshot") or 0
    if shots == 0:
        return
    # Only tasks of this class choose the split of their examples; others read what they need while they run.
    if isinstance(task, ConfigurableTask):
        task.fewshot_docs()
    elif task.has_training_docs():
        list(task.training_docs())
    if splits.absent:
        examples = f" for its {shots} few-shot examples (--num_fewshot 0 does without)"
        raise LowbitError(_absent_split(task.task_name, splits, examples))


def _absent_split(task: str, splits: MirrorSplits, purpose: str = "") -> str:
    missing = ", ".join(repr(split) for split in sorted(splits.absent)) or "the evaluated split's documents"
    return (
        f"data set {splits.dataset} lacks the split {missing}, which task {task!r} needs{purpose}: "
        f"looked in {splits.folder}, which has {sorted(splits)}"
    )


def _check_integrity(names: Sequence[str]) -> None:
    try:
        run_task_tests(task_list=list(names))
    except (ValueError, FileNotFoundError) as error:
        raise LowbitError(f"the harness's own tests of the tasks did not pass: {error}") from error


def _check_samples(prepared: PreparedTasks, settings: EvaluationSettings) -> None:
    perplexities = {task.base_name for task in prepared.perplexities}
    known = [*prepared.tasks, *sorted(perplexities)]
    for name, indices in (settings.samples or {}).items():
        # The context length in a perplexity's name may come from the model, which is not known here.
        if name not in prepared.tasks and name.partition("@")[0] not in perplexities:
            raise LowbitError(f"--samples names {name!r}, which is not evaluated; the tasks are {', '.join(known)}")
        if name in prepared.tasks and indices[-1] >= (count := len(prepared.tasks[name].eval_docs)):
            raise LowbitError(f"--samples asks for document {indices[-1]} of {name}, which has {count} documents")
