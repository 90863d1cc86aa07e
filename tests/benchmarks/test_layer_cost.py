"""The cost of a layer: valid inputs, memory that counts what was held, budgets, verdicts, continuation."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowbit.contracts import StatisticsNeed
from lowbit.errors import LowbitError

BENCHMARK = "layer_cost"
needs_kernel_mark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by Linux's own mark"
)


class Holder:
    """Stands for a quantizer that holds four times its layer for a moment."""

    name = "holder"
    needs = StatisticsNeed.NONE

    def quantize(self, weight: torch.Tensor, *_: Any) -> Any:
        held = torch.ones(4, *weight.shape)
        time.sleep(0.01 * float(held[0, 0, 0]))
        return Same(weight)


class Same:
    """The result of a quantizer that changes nothing."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.shape = tuple(weight.shape)

    def dequantize(self) -> torch.Tensor:
        return self.weight.clone()


def test_the_hessian_is_positive_definite_and_the_weight_has_large_columns(benchmark_module: ModuleType) -> None:
    weight, statistics = benchmark_module.make_layer("96x1100", 0)
    assert weight.shape == (96, 1100)
    assert statistics.hessian.shape == (1100, 1100)
    assert torch.linalg.eigvalsh(statistics.hessian.double())[0] > 0
    assert torch.equal(statistics.second_moment * 2, statistics.hessian.diagonal())
    correlation = statistics.hessian / statistics.second_moment.outer(statistics.second_moment).sqrt() / 2
    assert (correlation - torch.diag(correlation.diagonal())).abs().max() > 0.3
    norms = weight.norm(dim=0)
    assert int((norms > 4 * norms.median()).sum()) == 17
    assert torch.equal(benchmark_module.make_layer("96x1100", 0)[0], weight)


@needs_kernel_mark
def test_memory_that_was_held_for_a_moment_is_counted_and_the_inputs_are_not(benchmark_module: ModuleType) -> None:
    weight, _ = benchmark_module.make_layer("2048x1024", 0)
    benchmark_module.measure(Holder(), weight, None, 0, True)
    run = benchmark_module.measure(Holder(), weight, None, 0, True)
    assert 3.9 < run.resident_factor < 4.6
    assert run.relative_error == 0
    assert run.seconds >= 0.01


@needs_kernel_mark
def test_a_cell_runs_in_a_process_of_its_own(benchmark_module: ModuleType) -> None:
    cell = benchmark_module.run_cell("rtn", "128x96", 2, 1, 0, 120.0)
    assert cell.problem == ""
    assert [run.timed for run in cell.runs] == [True, True, False]
    assert len({run.relative_error for run in cell.runs}) == 1
    assert 0 < cell.median("cpu_seconds") < cell.median("seconds") + 1


def test_a_cell_over_its_budget_and_a_cell_that_fails_say_so(benchmark_module: ModuleType) -> None:
    late = benchmark_module.run_cell("rtn", "64x64", 1, 1, 0, 0.05)
    assert late.problem == "over the budget of 0.05 s" and not late.runs
    assert benchmark_module.texts(late, 1)[2] == "- (over the budget of 0.05 s; 0 runs)"
    failed = benchmark_module.run_cell("rtn", "0x64", 1, 1, 0, 120.0)
    assert "0x64" in failed.problem


@pytest.mark.parametrize(
    ("seconds", "threads", "verdict"),
    [(0.9, 2, "met"), (1.1, 2, "missed"), (0.9, 1, "met"), (1.1, 1, "not judged"), (0.9, 4, "not judged")],
)
def test_time_is_judged_where_the_target_is(
    benchmark_module: ModuleType, seconds: float, threads: int, verdict: str
) -> None:
    run = benchmark_module.Run(seconds, seconds, 1.0, 0.1, True)
    cell = benchmark_module.Cell("rtn", "rtn", "4096x4096", (run,))
    assert benchmark_module.time_verdict(cell, threads) == verdict
    assert benchmark_module.time_verdict(replace(cell, shape="256x256"), threads) == ""


@pytest.mark.parametrize(("factor", "verdict"), [(6.0, "met"), (6.1, "missed")])
def test_memory_is_judged_by_the_run_of_its_own(benchmark_module: ModuleType, factor: float, verdict: str) -> None:
    runs = (benchmark_module.Run(1, 1, 9.0, 0.1, True), benchmark_module.Run(1, 1, factor, 0.1, False))
    cell = benchmark_module.Cell("rtn", "rtn", "64x64", runs)
    assert benchmark_module.memory_verdict(cell) == verdict
    assert benchmark_module.memory_verdict(replace(cell, runs=runs[:1])) == ""


@needs_kernel_mark
def test_the_command_writes_every_cell_and_continues(benchmark_module: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "made" / "cost.json"
    command = [sys.executable, benchmark_module.__file__, "--methods", "rtn", "--repeats", "1", "--threads", "1"]
    first = subprocess.run(
        [*command, "--shapes", "64x64", "-o", str(file), "--markdown"], capture_output=True, text=True, check=True
    )
    assert "| rtn | 64x64 |" in first.stdout
    content = json.loads(file.read_text())
    [cell] = content["cells"]
    assert cell["runs"][0]["seconds"] > 0
    assert content["conditions"]["versions"]["torch"] == torch.__version__
    assert benchmark_module.read_cells(file, content["conditions"])[0].shape == "64x64"
    with pytest.raises(LowbitError, match="another seed"):
        benchmark_module.read_cells(file, {**content["conditions"], "seed": 1})
