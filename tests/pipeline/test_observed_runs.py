"""Every event of a run arrives, in the order in which things happen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_models import ModelFolder, make_recipe

from lowbit import hookimpl
from lowbit.contracts import EvaluationStep, QuantizedLayer
from lowbit.embedded import task_configs
from lowbit.pipeline.api import resolve_grid
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.evaluate import evaluate_model
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.registry import registry


class Witness:
    """Records what is told of it, as short tuples."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.steps: list[EvaluationStep] = []
        self.results: dict[str, Mapping[str, Any]] = {}

    @hookimpl
    def lowbit_tokens_generated(self, recipe: Mapping[str, Any], finished: int, batches: int) -> None:
        self.seen.append(("tokens", recipe["method"], finished, batches))

    @hookimpl
    def lowbit_run_started(self, blocks: int) -> None:
        self.seen.append(("started", blocks))

    @hookimpl
    def lowbit_layer_quantized(self, layer: QuantizedLayer) -> None:
        assert layer.seconds >= 0
        self.seen.append(("layer", layer.block, layer.number, layer.layers))

    @hookimpl
    def lowbit_block_quantized(self, block: Any) -> None:
        self.seen.append(("block", block.index))

    @hookimpl
    def lowbit_checkpoint_finished(
        self, recipe: Mapping[str, Any], checkpoint: Path, bits: Mapping[str, Any], cost: Mapping[str, float]
    ) -> None:
        assert (checkpoint / "config.json").is_file()
        assert bits["quantized_bits"] > 0
        assert cost["seconds"] > 0
        self.seen.append(("checkpoint", recipe["method"]))

    @hookimpl
    def lowbit_evaluation_started(self, recipe: Mapping[str, Any], role: str, tasks: Sequence[str]) -> None:
        self.seen.append(("evaluation", role, *tasks))

    @hookimpl
    def lowbit_evaluation_step(self, step: EvaluationStep) -> None:
        self.steps.append(step)

    @hookimpl
    def lowbit_evaluation_finished(self, recipe: Mapping[str, Any], role: str, results: Mapping[str, Any]) -> None:
        self.results[role] = results
        self.seen.append(("evaluated", role))


def test_training_text_layers_blocks_and_the_checkpoint_are_told_in_order(tmp_path: Path, parent: ModelFolder) -> None:
    training = {"seq_len": 16, "source": "generated", "generated": {"n_samples": 8, "batch_size": 4}}
    recipe = make_recipe(
        parent("llama"), "lsq", training_data=training, reconstruction={"steps": 1, "batch_size": 4}, distillation=None
    )
    witness = Witness()
    with registry().observing(witness):
        quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
        again = len(witness.seen)
        quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    tokens = [event for event in witness.seen if event[0] == "tokens"]
    assert tokens[-1] == ("tokens", "lsq", 2, 2)
    rest = witness.seen[len(tokens) : again]
    assert rest[0] == ("started", 3)
    layers = rest[1][3]
    assert rest[1:-1] == [
        event
        for block in range(3)
        for event in (*(("layer", block, number, layers) for number in range(1, layers + 1)), ("block", block))
    ]
    assert rest[-1] == ("checkpoint", "lsq")
    assert witness.seen[again:] == [("checkpoint", "lsq")]


def test_a_bench_tells_of_both_evaluations_and_counts_their_requests(tmp_path: Path) -> None:
    witness = Witness()
    flags = {"eval": {"tasks": "smallworld_text,smallworld_choice", "limit": 4, "bootstrap_iters": 0}}
    with registry().observing(witness):
        rows = list(bench(resolve_grid(None, "rtn", flags), BenchOptions(tmp_path, extra_tasks=task_configs())))
    assert [row.error for row in rows] == [None, None]
    told = [event for event in witness.seen if event[0].startswith("evalua")]
    tasks = ("smallworld_text", "smallworld_choice")
    assert told == [
        ("evaluation", "parent", *tasks),
        ("evaluated", "parent"),
        ("evaluation", "quantized", *tasks),
        ("evaluated", "quantized"),
    ]
    assert witness.results["parent"]["results"].keys() == set(tasks)
    windows = [step.done for step in witness.steps if step.unit == "windows"]
    requests = [step for step in witness.steps if step.unit == "requests"]
    assert all(step.tasks == ("smallworld_choice",) for step in requests)
    half = [step.done for step in requests[: len(requests) // 2]]
    assert half == list(range(requests[0].total + 1)) if requests[0].total else False
    assert windows.count(0) == 2
    assert max(windows) >= 4


def test_the_harness_draws_no_bars_where_somebody_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    witness = Witness()
    settings = {"tasks": "smallworld_choice", "limit": 2, "bootstrap_iters": 0}
    [recipe] = resolve_grid(None, "none", {"eval": settings})
    with registry().observing(witness):
        row = evaluate_model(recipe, extra_tasks=task_configs())
    assert row.metrics["smallworld_choice"].value >= 0
    assert witness.seen[0] == ("evaluation", "evaluation", "smallworld_choice")
    assert "Running loglikelihood requests" not in capsys.readouterr().err


def test_answers_from_the_cache_of_the_harness_are_kept_although_they_are_counted(tmp_path: Path) -> None:
    witness = Witness()
    settings = {"tasks": "smallworld_choice", "limit": 2, "bootstrap_iters": 0, "use_cache": str(tmp_path / "answers")}
    [recipe] = resolve_grid(None, "none", {"eval": settings})
    with registry().observing(witness):
        first = evaluate_model(recipe, extra_tasks=task_configs())
        counted = len(witness.steps)
        second = evaluate_model(recipe, extra_tasks=task_configs())
    assert counted > 1
    assert len(witness.steps) == counted
    assert first.metrics == second.metrics
