"""The comparison with auto-round: its plan, the tokens and weights that are handed over, its cells, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lowbit.errors import LowbitError

BENCHMARK = "peer_autoround"


@pytest.fixture
def cells(benchmark_module: ModuleType) -> ModuleType:
    return sys.modules["peer_autoround_cells"]


@pytest.fixture
def worker(benchmark_module: ModuleType) -> ModuleType:
    import peer_autoround_worker

    return peer_autoround_worker


def pack(codes: torch.Tensor, dim: int) -> torch.Tensor:
    """Pack 2-bit codes into int32 words, the first code in the lowest bits."""
    values = codes.movedim(dim, -1).numpy().astype(np.uint32)
    words = np.zeros((*values.shape[:-1], values.shape[-1] // 16), dtype=np.uint32)
    for place in range(16):
        words |= values[..., place::16] << np.uint32(2 * place)
    return torch.from_numpy(words.view(np.int32)).movedim(-1, dim).contiguous()


def stored_layer(outputs: int, inputs: int, group: int, missing: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a random layer as stored, and the weight [out, in] that it stands for."""
    generator = torch.Generator().manual_seed(outputs + inputs)
    codes = torch.randint(0, 4, (inputs, outputs), generator=generator)
    zeros = torch.randint(missing, 4, (inputs // group, outputs), generator=generator)
    scales = (torch.rand(inputs // group, outputs, generator=generator) - 0.5).half()
    weight = scales.float().repeat_interleave(group, 0) * (codes - zeros.repeat_interleave(group, 0))
    return {"qweight": pack(codes, 0), "qzeros": pack(zeros - missing, 1), "scales": scales}, weight.T


def test_methods_take_a_group_and_only_calibrated_ones_every_seed(benchmark_module: ModuleType) -> None:
    jobs = benchmark_module.plan_methods([None, "m"], ["gptq:32", "dbllm-ptq", "rtn"], [3, 4])
    planned = {(job.model, job.method, job.group, job.seed) for job in jobs}
    assert {(model, "gptq", 32, seed) for model in (None, "m") for seed in (3, 4)} <= planned
    assert {(seed, group) for _, name, group, seed in planned if name == "dbllm-ptq"} == {(3, 64)}
    assert [seed for _, name, _, seed in planned if name == "rtn"] == [3, 3] and len(jobs) == len(planned) == 8
    for text in ("gptq:", "gptq:many"):
        with pytest.raises(LowbitError, match="needs a number behind the colon"):
            benchmark_module.plan_methods([None], [text], [0])


def test_forms_of_the_peer_differ_only_in_their_own_settings(cells: ModuleType) -> None:
    jobs = list(cells.plan_peers([None], ["auto-round", "auto-round-asym"], 32, [0, 1]))
    assert [(job.method, job.seed) for job in jobs] == [
        (n, s) for s in (0, 1) for n in ("auto-round", "auto-round-asym")
    ]
    plain, asymmetric = (cells.peer_settings(job, 200) for job in jobs[:2])
    assert plain == {"scheme": "W2A16", "group_size": 32, "iters": 200, "seed": 0, "device_map": "cpu"}
    assert asymmetric == {**plain, "sym": False}
    with pytest.raises(LowbitError, match="unknown peer other"):
        list(cells.plan_peers([None], ["other"], 32, [0]))


@pytest.mark.parametrize("missing", [0, 1])
def test_stored_layers_are_dequantized_exactly(worker: ModuleType, missing: int) -> None:
    layer, weight = stored_layer(48, 64, 32, missing)
    assert torch.equal(worker.dequantize(layer, 2, 32, missing), weight)


def test_a_stored_checkpoint_is_read_counted_and_compared(worker: ModuleType, tmp_path: Path) -> None:
    layer, weight = stored_layer(48, 64, 32, 1)
    kept = torch.ones(20, 64, dtype=torch.bfloat16)
    tensors = {f"a.{part}": tensor for part, tensor in layer.items()} | {
        "b.weight": kept,
        "norm.weight": kept[0].clone(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"packing_format": worker.GPTQ_FORMAT, "bits": 2, "group_size": 32}
    (tmp_path / "quantization_config.json").write_text(json.dumps(config))
    weights, stored, layout = worker.dequantized_weights(tmp_path)
    assert layout == worker.GPTQ_FORMAT and list(weights) == ["a.weight"] and torch.equal(weights["a.weight"], weight)

    only = worker.count_bits(stored, [("a.weight", 48 * 64)], 1000, 2)
    assert (only["linear"], only["linear_without_zero_points"], only["unquantized_layers"]) == (2.5625, 2.5, [])
    both = worker.count_bits(stored, [("a.weight", 48 * 64), ("b.weight", 20 * 64)], 1000, 2)
    assert both["linear"] == (2.5625 * 48 + 16 * 20) / 68 and both["unquantized_layers"] == ["b.weight"]
    assert both["file"] == 8 * 1000 / (48 * 64 + 20 * 64 + 64)

    worker.require_equal(weights, {"a.weight": weight.bfloat16().float()})
    with pytest.raises(SystemExit, match="differs by"):
        worker.require_equal(weights, {"a.weight": weight + 0.05})
    with pytest.raises(SystemExit, match="stored layers differ"):
        worker.require_equal(weights, {})


def test_the_dequantized_model_is_the_parent_but_for_the_given_weights(
    worker: ModuleType, stories: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    linear = dict(worker.write_model(stories, {name: torch.full((64, 64), 0.25)}, tmp_path))
    parent, written = (transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in (stories, tmp_path))
    differing = [key for key, value in parent.state_dict().items() if not torch.equal(value, written.state_dict()[key])]
    assert differing == [name] and (written.get_parameter(name) == 0.25).all()
    assert len(linear) == 35 and linear[name] == 4096 and "lm_head.weight" not in linear
    assert (tmp_path / "tokenizer.json").read_bytes() == (stories / "tokenizer.json").read_bytes()


def test_versions_of_another_environment_are_read_and_a_strange_folder_is_refused(
    cells: ModuleType, tmp_path: Path
) -> None:
    found = cells.installed_versions(Path(sys.executable), ["torch", "no-such-package"])
    assert found == {"torch": torch.__version__.partition("+")[0]}
    (tmp_path / "precious").touch()
    with pytest.raises(LowbitError, match="neither empty nor a virtual environment"):
        cells.prepare_environment(tmp_path)
    with pytest.raises(LowbitError, match="cannot be run"):
        cells.installed_versions(tmp_path / "precious", ["torch"])


def test_an_environment_is_filled_once(cells: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: dict[str, str] = {}
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        commands.append(command)
        if "venv" in command:
            (tmp_path / "pyvenv.cfg").touch()
        if "pip" in command:
            installed.update(package.split("==") for package in command if "==" in package)
        return json.dumps(installed)

    monkeypatch.setattr(cells, "_run", run)
    assert cells.prepare_environment(tmp_path) == tmp_path / "bin" / "python"
    assert installed == cells.requirements() and installed["auto-round"] == "0.16.1"
    commands.clear()
    cells.prepare_environment(tmp_path)
    assert len(commands) == 1 and "pip" not in commands[0]


def give_back_the_parent(stories: Path, seen: list[np.ndarray]) -> Any:
    """Return a stand-in for auto-round's process that keeps the tokens and changes no weight."""

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        _, _, _, _, token_file, work, settings = command
        seen.append(np.load(token_file)["tokens"])
        model = transformers.AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
        model.save_pretrained(Path(work) / "model")
        transformers.AutoTokenizer.from_pretrained(stories).save_pretrained(Path(work) / "model")
        bits = {"nominal": 2, "linear": 2.5625, "file": 9.0}
        report = {"bits": bits, "seconds": 7.0, "settings": json.loads(settings)}
        (Path(work) / "report.json").write_text(json.dumps(report))
        return SimpleNamespace(returncode=0, stderr="")

    return run


def test_the_peer_gets_the_methods_tokens_and_their_evaluation(
    cells: ModuleType, stories: Path, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import methods_cells

    settings = methods_cells.Settings(str(mirror), 2, 32, 2)
    (tmp_path / "cells").mkdir()
    parent, gptq = (
        methods_cells.run_job(methods_cells.Job(str(stories), *what, 5), settings, tmp_path)
        for what in (("none", None), ("gptq", 32))
    )
    seen: list[np.ndarray] = []
    [job] = cells.plan_peers([str(stories)], ["auto-round"], 32, [5])
    with monkeypatch.context() as patch:
        patch.setattr(cells.subprocess, "run", give_back_the_parent(stories, seen))
        cell = cells.run_peer(job, settings, 200, Path("python"), tmp_path)
    assert cell.error is None
    assert (cell.task, cell.metric, cell.evaluated) == (parent.task, parent.metric, parent.evaluated)
    assert cell.perplexity == parent.perplexity < gptq.perplexity
    assert cell.calibration == gptq.calibration and seen[0].dtype == np.int64 and seen[0].shape == (2, 32)
    assert (cell.bits, cell.seconds) == ((2.0, 2.5625, 9.0), 7.0)
    assert json.loads((tmp_path / "reports" / job.file_name).read_text())["settings"]["iters"] == 200
    assert cells.finished_peer(job, settings, 200, tmp_path) == cell
    assert cells.finished_peer(job, settings, 100, tmp_path) is None


def test_a_failure_of_the_peer_is_kept_with_its_reason_and_made_again(
    cells: ModuleType, stories: Path, mirror: Path, tmp_path: Path
) -> None:
    import methods_cells

    settings = methods_cells.Settings(str(mirror), 2, 32, 2)
    [job] = cells.plan_peers([str(stories)], ["auto-round"], 32, [0])
    cell = cells.run_peer(job, settings, 1, Path(sys.executable), tmp_path)
    assert cell.error == "LowbitError: auto-round failed: ModuleNotFoundError: No module named 'auto_round'"
    assert cells.read_cell(tmp_path / "cells" / job.file_name) == cell
    assert cells.finished_peer(job, settings, 1, tmp_path) is None


def make_cell(table: ModuleType, method: str, group: int | None, seed: int, perplexity: float, **more: Any) -> Any:
    signature = {"versions": {"lowbit": "1"}, "plugins": {}, "peer": {"requirements": {"auto-round": "0.16.1"}}}
    bits = (2.0, 2.5625, 4.5)
    date = "2026-01-01T00:00:00+00:00"
    return table.Cell("m", method, group, seed, signature, date, "t", "ppl", perplexity, bits, 3, **more)


def test_the_table_has_parent_peer_and_methods_and_names_other_tokens(
    benchmark_module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"name": "text", "n_samples": 2, "seq_len": 4, "sha256": "same"}
    cells = [
        make_cell(benchmark_module, "mine", 64, 0, 12.0, seconds=50.0, calibration=record),
        make_cell(benchmark_module, "mine", 64, 1, 11.0, seconds=70.0, calibration={**record, "sha256": "other"}),
        make_cell(benchmark_module, "auto-round", 32, 0, 20.0, seconds=100.0, calibration=record),
        make_cell(benchmark_module, "none", None, 0, 10.0),
        make_cell(benchmark_module, "auto-round", 32, 1, 30.0, seconds=300.0, calibration=record),
        make_cell(benchmark_module, "broken", 64, 0, 1.0, error="why"),
    ]
    assert benchmark_module.table_rows(cells) == [
        ["parent", "-", "1", "2.56", "10", "1", "-"],
        ["auto-round", "32", "2", "2.56", "25 (20 to 30)", "2.5", "200"],
        ["mine", "64", "2", "2.56", "11.5 (11 to 12)", "1.15", "60"],
        ["broken", "64", "seed 0", "failed", "", "", ""],
    ]
    assert benchmark_module.other_tokens(cells) == ["m mine group 64 seed 1"]
    benchmark_module.print_tables(cells, markdown=True)
    printed = capsys.readouterr()
    assert "| auto-round | 32 | 2 | 2.56 | 25 (20 to 30) | 2.5 | 200 |" in printed.out
    assert "NOT calibrated on auto-round's tokens: m mine group 64 seed 1" in printed.out
    assert "auto-round's environment: auto-round 0.16.1." in printed.out and "FAILED: why" in printed.err
