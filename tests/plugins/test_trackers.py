"""The plugins of experiment trackers, on a recording stand-in always and on the real libraries where they are there."""

from __future__ import annotations

import importlib
import json
import math
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from docs.code_blocks import code_blocks
from small_models import ModelFolder, make_recipe

from lowbit import LowbitError, QuantizedBlock, hookimpl
from lowbit.embedded import task_configs
from lowbit.pipeline.api import resolve_grid
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.registry import Registry, registry

PLUGINS = ("lowbit_wandb", "lowbit_trackio")
LOG_BLOCK = 32768
LIBRARY = {"lowbit_wandb": "wandb", "lowbit_trackio": "trackio"}


class Recorder:
    """Stands in for the libraries' modules, and records their runs."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}

    def init(self, **arguments: Any) -> Recorder:
        assert not self.runs or self.runs[-1]["finished"], "the run before is open still"
        self.runs.append({**arguments, "logged": [], "finished": False, "failed": None})
        self.summary = self.runs[-1].setdefault("summary", {})
        return self

    def log(self, values: Mapping[str, Any]) -> None:
        assert not self.runs[-1]["finished"]
        assert all(isinstance(value, float) for value in values.values())
        self.runs[-1]["logged"].append(dict(values))

    def finish(self, exit_code: int | None = None) -> None:
        self.runs[-1].update(finished=True, failed=exit_code)

    def alert(self, title: str, text: str) -> None:
        self.runs[-1]["summary"]["error"] = text

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.runs[-1].setdefault("axes", {})[name] = step_metric

    def Settings(self, **settings: Any) -> SimpleNamespace:
        return SimpleNamespace(**settings)

    def values(self, run: int) -> dict[str, float]:
        return {name: value for logged in self.runs[run]["logged"] for name, value in logged.items()}


def fresh(plugin: str) -> ModuleType:
    sys.modules.pop(plugin, None)
    return importlib.import_module(plugin)


@pytest.fixture(params=PLUGINS)
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A plugin that observes, with a recorder in place of its library."""
    made = Recorder()
    monkeypatch.setitem(sys.modules, LIBRARY[request.param], made)  # type: ignore[arg-type]
    for variable in ("WANDB_PROJECT", "WANDB_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    with registry().observing(fresh(request.param)):
        yield made
    sys.modules.pop(request.param, None)


def bench_two(folder: Path) -> None:
    flags = {"eval": {"tasks": "smallworld_choice", "limit": 4, "bootstrap_iters": 0}}
    options = BenchOptions(folder, extra_tasks=task_configs())
    recipes = resolve_grid(None, "rtn", flags) + resolve_grid(None, "rtn", {**flags, "seed": 1})
    assert [row.error for row in bench(recipes, options)] == [None, None, None]


def test_each_method_is_a_run_with_recipe_blocks_bits_and_recovery(recorder: Recorder, tmp_path: Path) -> None:
    bench_two(tmp_path)
    assert [(run["project"], run["name"], run["finished"]) for run in recorder.runs] == [
        ("lowbit", "embedded-rtn", True)
    ] * 2
    assert [run["config"]["seed"] for run in recorder.runs] == [0, 1]
    values = recorder.values(0)
    assert values["block/number"] == 4
    assert 0 < values["block/error"] <= values["block/largest_error"]
    assert values["layer_error/model.layers.0.self_attn.q_proj"] > 0
    assert values["bits/nominal"] == 2
    assert values["cost/seconds"] > 0
    assert {"quantized/smallworld_choice/acc", "parent/smallworld_choice/acc"} <= values.keys()
    assert "recovery_percent/smallworld_choice/acc" in values
    assert recorder.runs[0]["failed"] in (None, 0)


def test_training_is_logged_step_by_step(recorder: Recorder, tmp_path: Path, parent: ModelFolder) -> None:
    training = {"seq_len": 16, "source": "generated", "generated": {"n_samples": 8, "batch_size": 8}}
    distillation = {"steps": 3, "batch_size": 4, "evaluate_every": 1, "held_out": 2}
    recipe = make_recipe(parent("llama"), "lsq", training_data=training, reconstruction=None, distillation=distillation)
    quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    steps = [logged for logged in recorder.runs[0]["logged"] if "distillation/step" in logged]
    assert [step["distillation/step"] for step in steps] == [1, 2, 3]
    assert all(
        {"distillation/loss", "distillation/rate", "distillation/held_out_loss"} <= step.keys() for step in steps
    )
    assert not recorder.runs[0]["finished"], "nothing but an evaluation or the process's end finishes it"


def test_a_failed_run_is_finished_and_says_why(recorder: Recorder, tmp_path: Path, parent: ModelFolder) -> None:
    class Bomb:
        @hookimpl
        def lowbit_block_quantized(self, block: QuantizedBlock) -> None:
            raise KeyboardInterrupt("pulled")

    recipe = make_recipe(parent("llama"), "rtn")
    with registry().observing(Bomb()), pytest.raises(KeyboardInterrupt):
        quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    [run] = recorder.runs
    assert run["finished"]
    assert run["summary"]["error"] == "KeyboardInterrupt: pulled"
    assert run["failed"] == 1 or recorder.values(0)["failed"] == 1


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_missing_library_is_one_error_with_the_command(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARY[plugin], None)
    sys.modules.pop(plugin, None)
    with pytest.raises(LowbitError, match=rf"pip install 'lowbit\[{LIBRARY[plugin]}\]'"):
        Registry().load(plugin)


def test_a_tracker_that_cannot_start_does_not_stop_the_run(
    tmp_path: Path, parent: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**arguments: Any) -> None:
        raise ConnectionError("no network")

    made = Recorder()
    made.init = refuse  # type: ignore[assignment, method-assign]
    monkeypatch.setitem(sys.modules, "trackio", made)  # type: ignore[arg-type]
    recipe = make_recipe(parent("llama"), "rtn")
    with registry().observing(fresh("lowbit_trackio")):
        outcome = quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    sys.modules.pop("lowbit_trackio", None)
    assert outcome.bits.nominal_bits == 2
    assert any("lowbit_run_started" in record.getMessage() for record in caplog.records)


def test_trackio_itself_keeps_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("TRACKIO_PROJECT", "lowbit-test")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "runs")
    with registry().observing(fresh("lowbit_trackio")):
        bench_two(tmp_path)
    runs = SQLiteStorage.get_runs("lowbit-test")
    assert len(runs) == 2
    for name in runs:
        rows = SQLiteStorage.get_logs("lowbit-test", name)
        logged = {key: value for row in rows for key, value in row.items()}
        assert logged["block/number"] == 4
        assert logged["failed"] == 0
        assert math.isfinite(logged["quantized/smallworld_choice/acc"])


def test_weights_and_biases_itself_keeps_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with registry().observing(fresh("lowbit_wandb")):
        bench_two(tmp_path)
    files = sorted(tmp_path.rglob("*.wandb"))
    assert len(files) == 2
    for file in files:
        logged: dict[str, Any] = {}
        codes = []
        for data in offline_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in record.history.item:
                logged[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            if record.HasField("exit"):
                codes.append(record.exit.exit_code)
        assert logged["block/number"] == 4
        assert "recovery_percent/smallworld_choice/acc" in logged
        assert codes == [0]


def test_the_tracker_and_the_observers_of_the_page_work(
    tmp_path: Path, parent: ModelFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[2] / "docs" / "logging.md"
    sources = [block.text for block in code_blocks(page) if block.language == "python"]
    beep, errors, tracker = (ModuleType(name) for name in ("beep", "errors", "tracker"))
    recipe = make_recipe(parent("llama"), "rtn")
    for module, source in zip((beep, errors, tracker), sources, strict=True):
        exec(compile(source, module.__name__, "exec"), vars(module))
    with registry().observing(errors.errors), registry().observing(beep), registry().observing(tracker):
        quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
        registry().notify("lowbit_run_failed", recipe=recipe.to_dict(), error=OSError("full"))
    assert len(errors.errors.means) == 3
    assert capsys.readouterr().err == "\a\a\a"
    [file] = tmp_path.glob("*-rtn.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line.get("block/number") for line in lines] == [1, 2, 3, None]


def offline_records(file: Path) -> Iterator[bytes]:
    """Yield the records of an offline run: LevelDB's log format behind a header of 7 bytes."""
    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = LOG_BLOCK - position % LOG_BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # A whole record, or its last part.
            yield record
            record = b""
