"""Grids on a Ray cluster of several nodes, with nodes that go away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engines.grids import files, grid, options_for, recipes_of, results

from lowbit.embedded import calibration_path, model_path
from lowbit.engines.grid_plan import GridWatcher
from lowbit.engines.ray_cluster import ClusterSettings, connected
from lowbit.engines.ray_engine import RayOptions, ray_bench
from lowbit.errors import LowbitError
from lowbit.pipeline.bench import bench
from lowbit.preemption import Interrupted
from lowbit.results.store import read_results

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lowbit[ray]'")

STORE_BYTES = 100_000_000


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute with as many threads as every node of the test's cluster has cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Cluster:
    """Three nodes of one core each on this machine; the first one cannot be lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        self._cluster = RayCluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self._others = {each.node_id: each for each in (self._cluster.add_node(**node) for _ in range(2))}
        self.settings = ClusterSettings(self._cluster.address)

    def lose(self, node: str) -> bool:
        """Kill a node as a machine that loses its power; say whether there was such a one besides the first."""
        if node not in self._others:
            return False
        self._cluster.remove_node(self._others.pop(node), allow_graceful=False)
        return True

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.shutdown()


class LosesNode(GridWatcher):
    """Kills one node as soon as a cell there has quantized a block.

    Args:
        cluster: Of which a node is lost.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.lost: int | None = None
        self.begun: list[int] = []
        self.errors: list[str] = []

    def started(self, number: int) -> None:
        self.begun.append(number)

    def reported(self, number: int, report: Mapping[str, Any]) -> None:
        if self.lost is None and "block 1 of" in report.get("line", "") and self._cluster.lose(report["node"]):
            self.lost = number

    def ended(self, number: int, error: str | None) -> None:
        if error is not None:
            self.errors.append(error)


def run_everywhere(tmp_path: Path, grid_file: Path, cluster: Cluster) -> tuple[Path, Path, LosesNode]:
    """Run a grid in one process and on a cluster that loses a node; return both results directories."""
    recipes, watcher = recipes_of(grid_file), LosesNode(cluster)
    here, there = tmp_path / "here", tmp_path / "there"
    # A process of its own: this one may have plugins that other tests registered, which results name.
    command = [sys.executable, "-m", "lowbit.cli.main", "bench", "--grid", str(grid_file), "-o", str(here)]
    local = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert local.returncode == 0, local.stderr
    rows = list(ray_bench(recipes, options_for(there), RayOptions(cluster.settings, watcher=watcher)))
    assert [row.error for row in rows] == [None] * len(rows)
    asked = [(recipe.method, recipe.seed) for recipe in recipes]
    assert [(row.method, row.seed) for row in rows if row.method != "parent"] == asked
    return here, there, watcher


def require_equal(here: Path, there: Path, cells: int, parents: int) -> None:
    ours, theirs = results(here), results(there)
    assert len(ours) == cells + parents
    assert theirs.keys() == ours.keys()
    assert all(len(found) == 1 for found in theirs.values()), "a result is there twice"
    assert theirs == ours
    assert files(there) == files(here)
    assert read_results(there).unreadable == ()
    leftovers = [file for file in there.rglob("*") if file.suffix in (".tmp", ".lock") or ".partial" in file.name]
    assert leftovers == []


def test_a_grid_on_a_cluster_that_loses_a_node_ends_as_in_one_process(tmp_path: Path, cluster: Cluster) -> None:
    here, there, watcher = run_everywhere(tmp_path, grid(tmp_path, ["gptq", "rtn"], [0, 1]), cluster)
    assert watcher.lost is not None, "no node was lost"
    assert watcher.errors == []
    require_equal(here, there, cells=4, parents=1)


@pytest.mark.slow
def test_three_methods_two_models_three_seeds_and_a_lost_node(tmp_path: Path, cluster: Cluster, shared: Path) -> None:
    models = [shared / "models" / "stories260K", model_path()]
    text = {"calibration": {"source": str(calibration_path()), "n_samples": 32, "seq_len": 256}}
    methods = [{"method": name, **text} for name in ("gptq", "rtn", "dbllm-ptq")]
    file = grid(tmp_path, methods, [0, 1, 2], models)
    here, there, watcher = run_everywhere(tmp_path, file, cluster)
    assert watcher.lost is not None, "no node was lost"
    require_equal(here, there, cells=18, parents=2)


def test_what_is_in_the_results_directory_is_not_run_again(tmp_path: Path) -> None:
    recipes = recipes_of(grid(tmp_path, ["rtn"], [0, 1]))
    output = tmp_path / "out"
    first = list(bench(recipes[:1], options_for(output, skip_finished=True)))
    before = sorted(output.rglob("results_*.json"))
    rows = list(bench(recipes, options_for(output, skip_finished=True)))
    assert [(row.method, row.seed) for row in rows] == [("parent", None), ("rtn", 0), ("rtn", 1)]
    assert rows[:2] == first
    assert len(set(output.rglob("results_*.json")) - set(before)) == 1
    again = list(bench(recipes[:1], options_for(output, skip_finished=True, refresh_parent=True)))
    assert len(list(output.glob("embedded/results_*.json"))) == 2 and again == first
    timed = list(bench(recipes[:1], options_for(output, skip_finished=True, speed=True)))
    assert timed[1].decoding and not first[1].decoding
    finished = list(ray_bench(recipes, options_for(output, skip_finished=True), RayOptions()))
    assert [(row.method, row.seed, row.metrics) for row in finished] == [
        (row.method, row.seed, row.metrics) for row in rows
    ]
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "words"), [("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"), ("nowhere", "expected HOST:PORT")]
)
def test_a_cluster_that_is_not_there_is_one_clear_error(tmp_path: Path, address: str, words: str) -> None:
    how = RayOptions(ClusterSettings(address))
    with pytest.raises(LowbitError, match=re.escape(words)):
        list(ray_bench(recipes_of(grid(tmp_path, ["rtn"], [0])), options_for(tmp_path / "out"), how))


def test_a_signal_that_rays_own_handler_took_while_connecting_ends_the_run_as_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: sys.exit(int(signal.SIGTERM)))
    with pytest.raises(Interrupted) as ended, connected(ClusterSettings()):
        raise AssertionError("never reached")
    assert ended.value.number == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_worker_whose_grid_is_interrupted_saves_the_step_that_its_training_is_at(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "out"
    distillation = {"steps": 4000, "batch_size": 4, "held_out": 2}
    trained = {"method": "dbllm-ptq", "distillation": distillation, "training_data": {"source": "calibration"}}
    file = grid(tmp_path, [{**trained, "calibration": {"n_samples": 16, "seq_len": 32}}], [0])
    command = [sys.executable, "-m", "lowbit.cli.main", "bench", "--grid", str(file), "-o", str(output)]
    process = subprocess.Popen(
        [*command, "--engine", "ray"], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = next(line for line in process.stderr if re.search("distillation: .*step [1-9]", line))
    process.send_signal(number)
    said += process.stderr.read()
    assert process.wait(timeout=60) == code, said
    (record,) = output.glob("checkpoints/*.partial/training/training.json")
    assert 0 < json.loads(record.read_text())["step"] < 4000


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_grid_continues_where_it_was(tmp_path: Path, number: signal.Signals, code: int) -> None:
    output = tmp_path / "out"
    file = grid(tmp_path, ["gptq", "rtn"], [0, 1])
    command = [sys.executable, "-m", "lowbit.cli.main", "bench", "--grid", str(file), "-o", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--engine", "ray"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "gptq: block 1 of" in line:
            break
    process.send_signal(number)
    began = time.monotonic()
    said = "".join([*lines, process.stderr.read()])
    assert process.wait(timeout=60) == code, said
    assert time.monotonic() - began < 10
    assert "the same command continues from there" in said and "Traceback" not in said
    # Engines leave the same files behind, so that one continues what another one began.
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "continuing: " in again.stderr
    assert all(len(found) == 1 for found in results(output).values())
    assert len(results(output)) == 5
