"""Several processes make the same bytes as one, and what one of them leaves behind any number can finish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distillation.small_training import QUICK_START, tokens_file
from pipeline.launching import launch
from small_models import ModelFolder, load_model, stored_tensors

from lowbit.modeling.quant_linear import QuantLinear

TESTS = Path(__file__).resolve().parents[1]

PLUGIN = """
import os, warnings
import torch
from lowbit import Method, StatisticsNeed, hookimpl
from lowbit.errors import QuantizationWarning
from lowbit_baselines import RoundToNearest

class Restless(RoundToNearest):
    '''Rounds what it adds noise to, weighs it by the inputs, warns of some weights, and fails where it is told to.'''
    name = "restless"
    needs = StatisticsNeed.SECOND_MOMENT

    def quantize(self, weight, statistics, generator):
        if os.environ.get("FAILING_RANK") == os.environ.get("RANK", "0"):
            raise ValueError("this process fails")
        noise = torch.rand(weight.shape, generator=generator) * 0.01
        if statistics is not None:
            noise = noise * statistics.second_moment
        if noise[0, 0] > noise[0, 1]:
            warnings.warn(f"met {float(noise[0, 0])}", QuantizationWarning, stacklevel=2)
        return super().quantize(weight + noise, None, generator)

@hookimpl
def lowbit_weight_quantizers():
    yield Restless

@hookimpl
def lowbit_methods():
    yield Method("restless", quantizer="restless")

@hookimpl
def lowbit_diagnostics(quantized):
    return {"mean": float(quantized.dequantize().mean())}
"""

SAMPLES = 5
TRAINED = {
    **QUICK_START,
    "training_data": {"source": "calibration"},
    "reconstruction": {"steps": 3, "batch_size": 2},
}
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rtn": ("llama", "rtn", {}),
    "gptq": ("llama", "gptq", {}),
    "dbllm-ptq": ("gpt2", "dbllm-ptq", {"quantizer": {"grid_candidates": 4, "iterations": 2}}),
    "billm": ("llama-tied", "billm", {}),
    "experts": ("mixtral", "gptq", {}),
    "restless": ("qwen3-moe", "restless", {}),
    "mixed": ("llama", "gptq", {"rules": [{"match": "re:.*_proj", "quantizer": {"name": "restless"}}]}),
    "trained": ("llama", "dbllm-ptq", TRAINED),
}
"""Architecture, method and flags by name."""

LAUNCHES = [("rtn", 2), ("gptq", 2), ("gptq", 3), ("gptq", 7), ("dbllm-ptq", 2), ("billm", 2), ("experts", 2)]
LAUNCHES += [("experts", 3), ("restless", 2), ("mixed", 3), ("trained", 2)]
KILLS = [(rank, at, call) for rank, at, call in (
    (1, "entering", 2), (0, "entering", 8), (1, "reducing", 3), (0, "sharing", 12), (0, "committing", 1),
    (0, "tensors", 2), (0, "dropping", 2), (1, "complete", 3), (0, "opening", 1), (0, "checkpoint", 1),
)]  # fmt: skip
"""Which process is killed, at which function, at its how-many-th call."""


def run(scenarios: list[dict[str, Any]], root: Path) -> dict[str, list[dict[str, Any]]]:
    """Run scenarios in a program of their own, that forks."""
    (root / "plugin.py").write_text(PLUGIN)
    (root / "scenarios.json").write_text(json.dumps(scenarios))
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "LOWBIT_PLUGINS": str(root / "plugin.py")}
    command = [sys.executable, str(Path(__file__).with_name("rank_runs.py")), str(root / "scenarios.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert {"config.json", "model.safetensors", "lowbit_provenance.json"} <= set(found)
    return found


def logs(root: Path, name: str) -> list[str]:
    return [file.read_text() for file in sorted(root.glob(f"{name}.log-*"))]


class Scenarios:
    """Puts scenarios together over small parents.

    Args:
        parent: Makes parents.
        tokens: Calibration tokens; their path is a part of the recipe.
    """

    def __init__(self, parent: ModelFolder, tokens: Path) -> None:
        self._parent = parent
        self._flags = {"calibration": {"source": str(tokens)}}
        self.all: list[dict[str, Any]] = []

    def add(self, name: str, kind: str, *attempts: dict[str, Any]) -> None:
        architecture, method, flags = METHODS[kind]
        parent = str(self._parent(architecture))
        scenario = {"name": name, "parent": parent, "method": method, "flags": {**self._flags, **flags}}
        self.all.append({**scenario, "attempts": list(attempts)})


@pytest.fixture(scope="module")
def launched(parent: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method in one process and in several, and what was heard of it."""
    root = tmp_path_factory.mktemp("launched")
    scenarios = Scenarios(parent, tokens_file(root, SAMPLES))
    for kind in METHODS:
        scenarios.add(f"{kind}-1", kind, {"size": 1})
    for kind, size in LAUNCHES:
        scenarios.add(f"{kind}-{size}", kind, {"size": size})
    for name, attempts in run(scenarios.all, root).items():
        for attempt in attempts:
            assert set(attempt["statuses"]) == {0}, logs(root, name)
    return root


@pytest.mark.parametrize(("kind", "size"), LAUNCHES, ids=[f"{kind}-{size}" for kind, size in LAUNCHES])
def test_several_processes_make_the_bytes_of_one(launched: Path, kind: str, size: int) -> None:
    assert contents(launched / f"{kind}-{size}") == contents(launched / f"{kind}-1")
    assert not (launched / f"{kind}-{size}.partial").exists()


def test_no_layer_differs_between_two_processes_and_one(launched: Path) -> None:
    one, two = (dict(load_model(launched / name).named_modules()) for name in ("gptq-1", "gptq-2"))
    largest = 0.0
    for name, module in one.items():
        if isinstance(module, QuantLinear):
            dense = module.dequantize()
            largest = max(largest, float((two[name].dequantize() - dense).norm() / dense.norm()))
    print(f"largest relative difference of a layer: {largest}")
    assert largest == 0.0
    assert len(stored_tensors(load_model(launched / "gptq-2"))) >= 21


@pytest.mark.parametrize(("kind", "size"), [("gptq", 2), ("mixed", 3), ("experts", 2)])
def test_the_main_process_hears_of_every_weight_once_and_others_of_none(launched: Path, kind: str, size: int) -> None:
    heard = [line.split() for line in (launched / f"{kind}-{size}.heard-0").read_text().splitlines()]
    alone = [line.split() for line in (launched / f"{kind}-1.heard-0").read_text().splitlines()]
    assert sorted(line[3] for line in heard) == sorted(line[3] for line in alone)
    assert [line[:3] for line in heard] == [line[:3] for line in alone]
    assert all(line[4] == "True" for line in heard)
    assert not list(launched.glob(f"{kind}-{size}.heard-[1-9]"))


def test_notes_and_diagnostics_of_every_process_are_reported(launched: Path) -> None:
    layers = json.loads((launched / "mixed-3" / "lowbit_provenance.json").read_text())["layers"]
    assert all("mean" in layer["diagnostics"] for layer in layers)
    notes = [layer["notes"] for layer in layers]
    assert any(notes) and not all(notes)


def test_a_run_that_was_killed_goes_on_with_another_number_of_processes(
    parent: ModelFolder, launched: Path, tmp_path: Path
) -> None:
    scenarios = Scenarios(parent, launched / "tokens.npz")
    for rank, at, call in KILLS:
        first = {"size": 2, "killed": {"rank": rank, "at": at, "call": call}}
        scenarios.add(f"two-one-{rank}-{at}", "gptq", first, {"size": 1})
    one_killed = {"size": 1, "killed": {"rank": 0, "at": "entering", "call": 13}}
    scenarios.add("one-two", "gptq", one_killed, {"size": 2})
    scenarios.add("three-two", "gptq", {"size": 3, "killed": {"rank": 2, "at": "reducing", "call": 9}}, {"size": 2})
    scenarios.add("trained", "trained", {"size": 2, "killed": {"rank": 1, "at": "entering", "call": 9}}, {"size": 3})
    for name, (killed, finished) in run(scenarios.all, tmp_path).items():
        assert -9 in killed["statuses"] and 0 not in killed["statuses"], (name, logs(tmp_path, name))
        assert killed["outlived"] < 15, name
        assert set(finished["statuses"]) == {0}, (name, logs(tmp_path, name))
        assert contents(tmp_path / name) == contents(launched / ("trained-1" if name == "trained" else "gptq-1")), name
        assert not (tmp_path / f"{name}.partial").exists()


def test_a_quantizer_that_fails_in_one_process_ends_all_with_one_message(
    parent: ModelFolder, launched: Path, tmp_path: Path
) -> None:
    scenarios = Scenarios(parent, launched / "tokens.npz")
    scenarios.add("imported", "rtn", {"size": 1})
    for rank in (0, 1):
        scenarios.add(f"out-{rank}", "mixed", {"size": 3, "environment": {"FAILING_RANK": str(rank)}})
    found = run(scenarios.all, tmp_path)
    for rank in (0, 1):
        assert found[f"out-{rank}"][0]["statuses"] == [1, 1, 1]
        assert found[f"out-{rank}"][0]["outlived"] < 5
        main, *others = logs(tmp_path, f"out-{rank}")
        assert "FailedTogetherError" in main
        assert f"process {rank} of 3 failed: quantizer restless failed on" in main and "this process fails" in main
        assert all("FailedTogetherError" in log and "this process fails" not in log for log in others)
        assert not (tmp_path / f"out-{rank}").exists()


def test_parts_of_activations_written_by_any_number_of_processes_are_read_in_order(tmp_path: Path) -> None:
    from lowbit.modeling.journal import Journal
    from lowbit.quantization.sharing import own_samples

    hidden = torch.randn(7, 3, 4)
    for size in (1, 2, 3, 9):
        store = Journal(tmp_path / str(size), "plain", 7)
        store.path.mkdir()
        for rank in reversed(range(size)):
            part = own_samples(7, rank, size)
            with store.write_activations(2, part=part) as writer:
                for sample in part:
                    writer.append(hidden[sample : sample + 1])
            assert store.has_activations(2) == (rank == 0)
        assert torch.equal(torch.cat(list(store.activations(2))), hidden)
        assert torch.equal(torch.cat(list(store.activations(2, part=range(1, 5)))), hidden[1:5])
        assert torch.equal(store.batch(2, [6, 0, 3, 3]), hidden[[6, 0, 3, 3]])


def bench_in(processes: int, output: Path) -> subprocess.CompletedProcess[str]:
    arguments = ["--method", "rtn,gptq,billm", "--tasks", "smallworld_choice,smallworld_text", "--limit", "6"]
    arguments += ["--n_samples", "5", "--seq_len", "32", "-o", str(output)]
    return launch(["-m", "lowbit.cli.main", "bench", *arguments], processes=processes, timeout=400)


@pytest.mark.slow
def test_a_bench_in_two_processes_has_the_results_of_one(tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        done = bench_in(processes, output)
        assert done.returncode == 0, done.stderr
        files = output.rglob("results_*.json")
        found[processes] = {file.parent.name: json.loads(file.read_text())["results"] for file in files}
        assert len(found[processes]) == 4
    assert found[1] == found[2]
    for method in ("rtn", "gptq", "billm"):
        one, two = (list((tmp_path / size / "checkpoints").glob(f"*{method}*")) for size in "12")
        folders = [next(path for path in paths if path.is_dir()) for paths in (one, two)]
        assert contents(folders[0]) == contents(folders[1])


@pytest.mark.slow
def test_the_command_line_tells_of_one_process_failure_once(
    parent: ModelFolder, launched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setenv("FAILING_RANK", "1")
    arguments = ["--model", str(parent("llama")), "--method", "restless", "--plugin", str(plugin)]
    arguments += ["--calibration", str(launched / "tokens.npz"), "-o", str(tmp_path / "out")]
    done = launch(["-m", "lowbit.cli.main", "quantize", *arguments])
    assert done.returncode != 0
    assert done.stderr.count("lowbit: error:") == 1
    assert "process 1 of 2 failed: quantizer restless failed on" in done.stderr
