from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import lowbit
from lowbit import Kernel, LowbitError, QuantizedBlock, QuantizedWeight, Workload, hookimpl
from lowbit.embedded import task_configs
from lowbit.pipeline.api import resolve_grid
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.load import logits_of
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.recipe import resolve_recipe
from lowbit.registry import PluginSource, registry


class Witness:
    """Records every event and answers the questions that plugins are asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.workloads: list[Workload] = []

    @hookimpl
    def lowbit_run_started(self, recipe: Mapping[str, Any], blocks: int, finished: int) -> None:
        self.seen.append(("started", (recipe["method"], blocks, finished)))

    @hookimpl
    def lowbit_block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        self.seen.append(("block", (block.index, blocks)))

    @hookimpl
    def lowbit_run_finished(self, result: Mapping[str, Any]) -> None:
        self.seen.append(("finished", result["method"]))

    @hookimpl
    def lowbit_run_failed(self, recipe: Mapping[str, Any], error: BaseException) -> None:
        self.seen.append(("failed", str(error)))

    @hookimpl
    def lowbit_diagnostics(self, quantized: QuantizedWeight) -> Mapping[str, float]:
        return {"rows": float(quantized.shape[0])}

    @hookimpl
    def lowbit_choose_kernel(self, workload: Workload, kernels: Sequence[Kernel]) -> Kernel | None:
        self.workloads.append(workload)
        return next((kernel for kernel in kernels if kernel.name == "reference"), None)


@pytest.fixture
def witness() -> Iterator[Witness]:
    made = Witness()
    registry().register(made, PluginSource("witness", f"tests-{id(made)}"))
    yield made
    registry().unregister(made)


def test_a_bench_tells_of_start_blocks_and_finish(tmp_path: Path, witness: Witness) -> None:
    flags = {"eval": {"tasks": "smallworld_choice", "limit": 4, "bootstrap_iters": 0}}
    rows = list(bench(resolve_grid(None, "rtn", flags), BenchOptions(tmp_path, extra_tasks=task_configs())))
    assert rows[1].error is None
    blocks = [("block", (index, 4)) for index in range(4)]
    assert witness.seen == [("started", ("rtn", 4, 0)), *blocks, ("finished", "rtn")]


def test_a_failure_is_reported_with_its_error(tmp_path: Path, witness: Witness) -> None:
    (tmp_path / "file").write_text("")
    recipe = resolve_recipe(registry(), "rtn")
    with pytest.raises(LowbitError):
        quantize_to(recipe, tmp_path / "file", HookEvents(recipe))
    assert [kind for kind, _ in witness.seen] == ["failed"]


def test_diagnostics_of_every_plugin_come_together(tmp_path: Path, witness: Witness) -> None:
    recipe = resolve_recipe(registry(), "dbllm-ptq")
    outcome = quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    assert {"rows", "plane1_density"} <= outcome.layers[0]["diagnostics"].keys()


def test_a_plugin_may_choose_the_kernel(tmp_path: Path, witness: Witness) -> None:
    recipe = resolve_recipe(registry(), "rtn")
    quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    model = lowbit.load(tmp_path / "checkpoint", dtype="float32")
    logits_of(model, torch.arange(1, 9).unsqueeze(0))
    assert {workload.spec.format for workload in witness.workloads} == {"uniform"}
