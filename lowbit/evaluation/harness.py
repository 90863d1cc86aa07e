"""One model through lm-evaluation-harness, its result in the harness's own layout."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy
from lm_eval.api.model import CachingLM
from lm_eval.caching.cache import delete_cache
from lm_eval.evaluator import evaluate as evaluate_tasks
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_model_name, set_torch_seed

from lowbit.contracts import EvaluationStep
from lowbit.errors import LowbitError
from lowbit.evaluation.language_model import EvaluatedModel, weights_hash
from lowbit.evaluation.perplexity import evaluate_perplexity
from lowbit.evaluation.prepare import PreparedTasks, prepare_tasks
from lowbit.recipe.evaluation import EvaluationSettings

__all__ = ["PreparedTasks", "evaluate", "prepare_tasks"]


def evaluate(
    model: Any,
    tokenizer: Any,
    prepared: PreparedTasks,
    settings: EvaluationSettings,
    *,
    model_name: str,
    num_parameters: int | None = None,
    model_sha: str = "",
    on_step: Callable[[EvaluationStep], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on prepared tasks; the same tasks may be given again for the next model.

    Args:
        model: A causal language model of transformers, in memory.
        tokenizer: Its tokenizer.
        prepared: What `prepare_tasks` made with the same settings.
        settings: What to evaluate and how.
        model_name: The name under which the result is filed: a path or a hub id.
        num_parameters: The number of weights that the model stands for, where its tensors are packed.
        model_sha: What identifies the model's weights.
        on_step: Hears how many requests are answered, in place of the harness's own progress bars.

    Returns:
        The harness's result, with the token perplexities among its tasks; nothing but what JSON can hold.

    Raises:
        LowbitError: A task cannot be run on this model.
    """
    started, date = time.perf_counter(), time.time()
    if settings.device is not None and model.device.type != settings.device.partition(":")[0]:
        model.to(settings.device)
    _set_seeds(settings)
    language_model = EvaluatedModel(
        model, tokenizer, settings, num_parameters=num_parameters, model_sha=model_sha, on_step=on_step
    )
    results = _empty_result()
    with prepared.data_access():
        if prepared.tasks:
            _merge(results, _run_harness(language_model, prepared, settings, model_name))
    for task in prepared.perplexities:
        _merge(results, evaluate_perplexity(model, tokenizer, task, settings, on_step))
    for section in ("configs", "versions", "n-shot", "higher_is_better"):
        results[section] = dict(sorted(results[section].items()))
    results["config"] = _describe_run(language_model, settings, model_name)
    results["git_hash"] = _git_hash()
    results["date"] = date
    results.update(_environment())
    add_tokenizer_info(results, language_model)
    results["task_hashes"] = _task_hashes(results.get("samples", {}))
    results.update(_describe_prompts(language_model, settings, model_name))
    ended = time.perf_counter()
    results.update(start_time=started, end_time=ended, total_evaluation_time_seconds=str(ended - started))
    plain: dict[str, Any] = json.loads(json.dumps(results, default=handle_non_serializable, ensure_ascii=False))
    return plain


def _set_seeds(settings: EvaluationSettings) -> None:
    """Set the generators as the harness's command line does before it runs."""
    python, array, torch, _ = settings.seed
    if python is not None:
        random.seed(python)
    if array is not None:
        numpy.random.seed(array)
    if torch is not None:
        set_torch_seed(torch)


def _run_harness(
    language_model: EvaluatedModel,
    prepared: PreparedTasks,
    settings: EvaluationSettings,
    model_name: str,
) -> dict[str, Any]:
    for task in prepared.tasks.values():
        task.set_fewshot_seed(seed=settings.seed[3])
    model: Any = language_model
    if settings.use_cache is not None:
        # The harness keeps answers by request alone, so that every model needs a database of its own.
        tokens = f"{settings.max_length} {settings.add_bos_token}"
        identity = hash_string(weights_hash(language_model.model) + tokens)[:16]
        path = f"{settings.use_cache}_{sanitize_model_name(model_name)}_{identity}_rank0.db"
        model = CachingLM(language_model, path)
    if settings.cache_requests == "delete":
        delete_cache()
    try:
        results = evaluate_tasks(
            lm=model,
            task_dict={"tasks": dict(prepared.tasks), "groups": dict(prepared.groups)},
            limit=settings.limit,
            samples={name: list(indices) for name, indices in settings.samples.items()} if settings.samples else None,
            cache_requests=settings.cache_requests in ("true", "refresh"),
            rewrite_requests_cache=settings.cache_requests == "refresh",
            bootstrap_iters=settings.bootstrap_iters,
            write_out=settings.write_out,
            log_samples=settings.log_samples or settings.predict_only,
            system_instruction=settings.system_instruction,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.multiturn,
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
        )
    except AssertionError as error:
        reason = str(error) or "a check of its own failed without a message"
        raise LowbitError(
            f"the harness cannot evaluate {model_name} on {', '.join(prepared.tasks)}: {reason}"
        ) from error
    except LowbitError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise LowbitError(
            f"the harness failed on {model_name} with {', '.join(prepared.tasks)}: {reason}; "
            "a --max_length beyond the model's positions is one cause"
        ) from error
    return dict(results or {})


def _empty_result() -> dict[str, Any]:
    sections = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    return {section: {} for section in sections}


def _merge(results: dict[str, Any], more: Mapping[str, Any]) -> None:
    for section, content in more.items():
        results.setdefault(section, {}).update(content)


def _describe_run(language_model: EvaluatedModel, settings: EvaluationSettings, model_name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"pretrained": model_name}
    for name in ("max_length", "add_bos_token"):
        if (value := getattr(settings, name)) is not None:
            arguments[name] = value
    if settings.trust_remote_code:
        arguments["trust_remote_code"] = True
    python, array, torch, fewshot = settings.seed
    return {
        "model": "hf",
        "model_args": arguments,
        **language_model.get_model_info(),
        "batch_size": settings.batch_size,
        "batch_sizes": list(language_model.batch_sizes.values()),
        "device": str(language_model.device),
        "use_cache": settings.use_cache,
        "limit": settings.limit,
        "bootstrap_iters": settings.bootstrap_iters,
        "gen_kwargs": settings.gen_kwargs or None,
        "random_seed": python,
        "numpy_seed": array,
        "torch_seed": torch,
        "fewshot_seed": fewshot,
    }


@functools.cache
def _environment() -> dict[str, Any]:
    """Versions and hardware as the harness reports them; collecting them takes seconds, and they do not change."""
    storage: dict[str, Any] = {}
    add_env_info(storage)
    return storage


@functools.cache
def _git_hash() -> str | None:
    """The commit of the working folder, None outside a repository; the harness's own way complains aloud there."""
    try:
        command = ["git", "describe", "--always"]
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _task_hashes(samples: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, str]:
    """What identifies the documents, prompts and targets of each task, where samples are kept."""
    return {
        name: hash_string("".join(entry["doc_hash"] + entry["prompt_hash"] + entry["target_hash"] for entry in entries))
        for name, entries in samples.items()
    }


def _describe_prompts(language_model: EvaluatedModel, settings: EvaluationSettings, model_name: str) -> dict[str, Any]:
    template = language_model.chat_template(settings.apply_chat_template) if settings.apply_chat_template else None
    instruction = settings.system_instruction
    return {
        "model_source": "hf",
        "model_name": model_name,
        "model_name_sanitized": sanitize_model_name(model_name),
        "system_instruction": instruction,
        "system_instruction_sha": hash_string(instruction) if instruction else None,
        "fewshot_as_multiturn": settings.multiturn,
        "chat_template": template,
        "chat_template_sha": hash_string(template) if template else None,
    }
