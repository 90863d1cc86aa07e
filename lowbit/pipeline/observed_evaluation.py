"""An evaluation that plugins may observe."""

from __future__ import annotations

from typing import Any

from lowbit.contracts import EvaluationStep
from lowbit.evaluation.harness import PreparedTasks, evaluate
from lowbit.recipe import Recipe
from lowbit.registry import registry


def observed_evaluation(
    recipe: Recipe, role: str, model: Any, tokenizer: Any, tasks: PreparedTasks, **about_model: Any
) -> dict[str, Any]:
    """Evaluate a model as a recipe says, and tell plugins of start, steps and end.

    Args:
        recipe: Of this `eval` says how.
        role: What the model is in this run: `parent`, `quantized` or `evaluation`.
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        tasks: What `prepare_tasks` made of `recipe.eval`.
        about_model: `model_name`, `num_parameters` and `model_sha`, as `evaluate` takes them.

    Returns:
        The harness's result.

    Raises:
        LowbitError: A task cannot be run on this model.
    """
    told = recipe.to_dict()
    tell = registry().notify

    def step(done: EvaluationStep) -> None:
        tell("lowbit_evaluation_step", step=done)

    tell("lowbit_evaluation_started", recipe=told, role=role, tasks=tuple(recipe.eval.tasks))
    results = evaluate(model, tokenizer, tasks, recipe.eval, on_step=step, **about_model)
    tell("lowbit_evaluation_finished", recipe=told, role=role, results=results)
    return results
