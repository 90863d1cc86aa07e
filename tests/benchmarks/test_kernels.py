"""The kernel benchmark: wrong products are not timed, caches do not flatter, bursts take turns, tables say it all."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from lowbit.errors import LowbitError

BENCHMARK = "kernels"
CPU = torch.device("cpu")
PLAN = {"rounds": 3, "calls": 2, "budget": 1.0}
SMALL = 2**16


@pytest.fixture(scope="module")
def contenders(benchmark_module: ModuleType) -> ModuleType:
    return importlib.import_module("kernels_contenders")


@pytest.fixture(scope="module")
def timing(benchmark_module: ModuleType) -> ModuleType:
    return importlib.import_module("kernels_timing")


@pytest.fixture(scope="module")
def report(benchmark_module: ModuleType) -> ModuleType:
    return importlib.import_module("kernels_report")


@pytest.fixture(scope="module")
def peers(benchmark_module: ModuleType) -> ModuleType:
    return importlib.import_module("kernels_peers")


@pytest.fixture(scope="module")
def layer(contenders: ModuleType) -> Any:
    return contenders.quantized_layer("48x128", "dbllm-ptq", None, CPU, 2**16, 1, 0)


@pytest.fixture(scope="module")
def cell(benchmark_module: ModuleType, layer: Any) -> Any:
    found, absent = benchmark_module.contenders_of(layer, ["float32", "bfloat16"], True, Path("/nowhere"))
    return benchmark_module.measure_cell(layer, found, absent, 3, PLAN, 0, SMALL)


def test_shapes_are_those_of_models_or_given(benchmark_module: ModuleType) -> None:
    assert benchmark_module.shapes_of("7b,64x32,4096x4096") == ["4096x4096", "11008x4096", "4096x11008", "64x32"]
    with pytest.raises(LowbitError, match="OUTxIN"):
        benchmark_module.shapes_of("8b")


def test_copies_of_a_weight_are_together_larger_than_twice_the_cache(layer: Any) -> None:
    small = replace(layer, cache_bytes=1000)
    assert small.copies(300) * 300 >= 2 * small.cache_bytes > (small.copies(300) - 1) * 300
    assert small.copies(10**9) == 2
    assert small.copies(1) == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_right_product_agrees_and_one_without_a_group_does_not(contenders: ModuleType, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 512, generator=generator)
    x = torch.randn(2, 512, generator=generator).to(dtype)
    right = (x.double() @ matrix.double().T).to(dtype)
    found = contenders.agreement(right, matrix, x)
    assert found.agrees
    assert found.error <= torch.finfo(dtype).eps
    without = matrix.clone()
    without[7, 64:128] = 0
    wrong = contenders.agreement((x.double() @ without.double().T).to(dtype), matrix, x)
    assert not wrong.agrees
    assert wrong.error > 1e-3


def test_infinite_and_missing_numbers_do_not_agree(contenders: ModuleType) -> None:
    matrix, x = torch.ones(3, 4), torch.ones(1, 4)
    assert not contenders.agreement(torch.full((1, 3), math.nan), matrix, x).agrees
    assert not contenders.agreement(torch.full((1, 3), math.inf), matrix, x).agrees


def test_median_and_quartiles_are_those_of_the_calls(timing: ModuleType) -> None:
    times = timing.Times.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert times == timing.Times(3.0, 2.0, 4.0, 1.0, 5)
    assert timing.Times.of([2.0]) == timing.Times(2.0, 2.0, 2.0, 2.0, 1)


def test_bursts_take_turns_and_rotate_through_all_copies(timing: ModuleType) -> None:
    made: list[tuple[str, int]] = []

    def calls(name: str, copies: int) -> list[Callable[[], None]]:
        return [lambda number=number: made.append((name, number)) for number in range(copies)]

    times = timing.interleaved({"a": calls("a", 5), "b": calls("b", 2)}, timing.HostClock(), 6, 3, 100.0)
    assert {name: found.calls for name, found in times.items()} == {"a": 18, "b": 18}
    assert {number for name, number in made if name == "a"} == set(range(5))
    in_turn = [name for name, _ in made][6:]  # without the bursts of 3 that decide how many calls are affordable
    assert "".join(in_turn[::4]) == "abbaabbaabba"


def test_a_slow_contender_gets_shorter_bursts_but_some(timing: ModuleType) -> None:
    class Slow:
        def burst(self, calls: Any, first: int, count: int) -> list[float]:
            return [10.0] * count

    times = timing.interleaved({"slow": [lambda: None]}, Slow(), 9, 5, 1.0)
    assert times["slow"].calls == 3


def test_a_copy_counts_what_is_read_and_written(timing: ModuleType) -> None:
    times = {"copy": timing.Times.of([0.5]), "read": timing.Times.of([0.25])}
    assert timing.bandwidth_of(times, CPU, 1000) == timing.Bandwidth(copy=4000.0, read=4000.0)
    for call in timing.bandwidth_calls(CPU, SMALL).values():
        assert call[0]().numel() in (1, SMALL // 4)


def test_every_kernel_that_serves_is_checked_and_timed(cell: Any) -> None:
    names = {(line.name, line.dtype) for line in cell.lines}
    assert {("torch linear", "float32"), ("torch linear", "bfloat16"), ("reference", "float32")} <= names
    for line in cell.lines:
        assert line.problem == ""
        assert line.times is not None
        assert 0 < line.times.fastest <= line.times.lower <= line.times.median <= line.times.upper
        exact = line.dtype == "float32" and "int8" not in line.name
        assert line.error < (1e-5 if exact else 1e-2) or line.kind == "peer"
        assert line.copies >= 2
    kernels = [line for line in cell.lines if line.kind == "kernel"]
    assert len({line.bytes for line in kernels}) == 1
    assert kernels[0].bytes < 48 * 128


def test_peers_that_are_absent_say_why(cell: Any) -> None:
    assert "runs on CUDA only" in cell.absent["gemlite"]
    assert "libggml-cpu.so" in cell.absent["llama.cpp"]


def test_a_cell_survives_its_file(cell: Any, report: ModuleType) -> None:
    assert report.Cell.read(json.loads(json.dumps(cell.to_json()))) == cell


def test_the_table_has_a_line_for_each_product_and_the_rest_below(cell: Any, report: ModuleType) -> None:
    text = report.to_markdown([cell])
    rows = [line for line in text.splitlines() if line.startswith("| 48x128")]
    assert len(rows) == len(cell.lines)
    assert all(row.count("|") == len(report.TITLES) + 1 for row in rows)
    assert "Not measured: gemlite: runs on CUDA only." in text
    assert "copy" in text
    dense = next(line for line in cell.lines if (line.kind, line.dtype) == ("torch", "float32"))
    assert cell.ratio(dense, "float32") == 1.0
    assert cell.ratio(dense, "float16") is None
    assert f"{dense.bytes / dense.times.median / 1e9:.2f}" in report.texts(cell, dense)


def test_points_of_the_roofline_are_operations_a_byte_and_a_second(cell: Any, report: ModuleType) -> None:
    assert cell.operations == 2 * 3 * 48 * 128
    points = report.roofline_points([cell])
    ((intensity, rate),) = points[("torch", "torch linear (float32)")]
    assert intensity == pytest.approx(2 * 3 / 4)
    dense = next(line for line in cell.lines if (line.kind, line.dtype) == ("torch", "float32"))
    assert rate == pytest.approx(cell.operations / dense.times.median)


def test_the_roofline_is_drawn(cell: Any, report: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.draw([cell], tmp_path / "roofline.svg")
    drawn = (tmp_path / "roofline.svg").read_text()
    assert "copy bandwidth" in drawn
    assert "reference (float32)" in drawn
    with pytest.raises(LowbitError, match=r"\.svg"):
        report.draw([cell], tmp_path / "roofline.txt")


def test_a_wrong_product_is_marked_and_not_timed(
    benchmark_module: ModuleType, contenders: ModuleType, layer: Any
) -> None:
    def wrong(x: Tensor) -> list[Any]:
        return [lambda: x @ layer.dense.T * 1.01]

    one = contenders.Contender("wrong one", "kernel", "none", "float32", 10, wrong, lambda: layer.dense)
    cell = benchmark_module.measure_cell(layer, [one], {}, 2, PLAN, 0, SMALL)
    (line,) = cell.lines
    assert line.times is None
    assert line.problem == "wrong"
    rough = replace(one, exact=False)
    assert benchmark_module.measure_cell(layer, [rough], {}, 2, PLAN, 0, SMALL).lines[0].times is not None


def test_a_kernel_that_cannot_be_made_ready_is_absent(
    contenders: ModuleType, layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowbit.modeling.reference_kernel import ReferenceKernel

    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(ReferenceKernel, "bind", fail)
    absent = {
        one.name: one.reason for one in contenders.kernel_contenders(layer, ["float32"]) if hasattr(one, "reason")
    }
    assert "no compiler" in absent["reference (float32)"]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_codes_stand_for_the_nearest_levels_of_their_group(peers: ModuleType, bits: int) -> None:
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    codes, steps, lows = peers.uniform_codes(weight, bits, 64)
    assert int(codes.max()) == 2**bits - 1
    error = (peers._from_codes(codes, steps, lows) - weight).abs().unflatten(1, (2, 64))
    assert bool((error <= steps.unsqueeze(-1) / 2 + 1e-6).all())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_4_bit_product_of_torch_is_what_its_matrix_says(
    peers: ModuleType, contenders: ModuleType, layer: Any, dtype: str
) -> None:
    (one,) = peers._int4(layer, [dtype])
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).to(contenders.DTYPES[dtype])
    assert one.exact
    assert all(contenders.agreement(call(), one.matrix(), x).agrees for call in one.calls(x))


def test_llama_cpps_types_multiply_by_what_they_quantized(peers: ModuleType, contenders: ModuleType) -> None:
    ggml = importlib.import_module("kernels_ggml")
    named = os.environ.get("LOWBIT_TEST_GGML")
    try:
        folder = ggml.library_folder(Path(named) if named else None)
    except LowbitError as error:
        pytest.skip(f"{error}; LOWBIT_TEST_GGML names a folder")
    layer = contenders.quantized_layer("64x512", "dbllm-ptq", None, CPU, 2**16, 1, 0)
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(1))
    found = [one for one in peers._ggml(layer, ["float32"], folder) if isinstance(one, contenders.Contender)]
    assert {"q2_K", "tq2_0"} <= {one.weights for one in found}
    for one in found:
        for call in one.calls(x):
            assert contenders.agreement(call(), one.matrix(), x).error < 0.01, one.name


def test_the_command_measures_continues_and_shows(benchmark_module: ModuleType, tmp_path: Path) -> None:
    timing = importlib.import_module("kernels_timing")
    output = tmp_path / "kernels.json"
    options = ["--shapes", "32x64", "--dtypes", "float32", "--rounds", "3", "--calls", "1", "--no-peers"]
    options += ["--threads", str(torch.get_num_threads()), "-o", str(output), "--markdown"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(timing.BANDWIDTH_BYTES, "cpu", SMALL)
        first = CliRunner().invoke(benchmark_module.main, ["--rows", "1", *options], catch_exceptions=False)
        second = CliRunner().invoke(benchmark_module.main, ["--rows", "1,2", *options], catch_exceptions=False)
    assert first.exit_code == second.exit_code == 0
    content = json.loads(output.read_text())
    assert [cell["rows"] for cell in content["cells"]] == [1, 2]
    assert content["conditions"]["versions"]["torch"] == torch.__version__
    assert content["conditions"]["host"]["cpu_count"] == os.cpu_count()
    shown = CliRunner().invoke(benchmark_module.main, ["--show", "--markdown", "-o", str(output)])
    assert shown.stdout == second.stdout
    with pytest.raises(LowbitError, match="another seed"):
        benchmark_module.main(["--seed", "7", "--rows", "1", *options], standalone_mode=False)


def test_unknown_names_are_refused(benchmark_module: ModuleType, tmp_path: Path) -> None:
    output = str(tmp_path / "kernels.json")
    with pytest.raises(LowbitError, match="dtype 'int8' is unknown"):
        benchmark_module.main(["--dtypes", "int8", "-o", output], standalone_mode=False)
    with pytest.raises(LowbitError, match="method 'none-such' is unknown"):
        benchmark_module.main(["--methods", "none-such", "-o", output], standalone_mode=False)
    with pytest.raises(LowbitError, match="holds no cells"):
        benchmark_module.main(["--show", "-o", output], standalone_mode=False)
