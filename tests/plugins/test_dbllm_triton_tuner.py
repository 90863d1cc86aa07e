"""The choice of configurations, and how it is remembered; no GPU is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lowbit_dbllm import triton_tuner
from lowbit_dbllm.triton_configurations import (
    BUCKETS,
    Configuration,
    GemmConfiguration,
    GemvConfiguration,
    bucket_of,
    candidate_configurations,
    default_configuration,
    read_plan,
    step_words,
    write_plan,
)
from lowbit_dbllm.triton_tuner import TuningCache, cache_path, workload_key

from lowbit import RowTiles, row_tiles_shape

PLAN: dict[int, Configuration] = {1: GemvConfiguration(2, 8, 4, 3, 2), 64: GemmConfiguration(4, 32, 4, 3)}
SHAPES = [(1, 32, 32), (16, 64, 64), (1024, 8192, 64), (4096, 4096, 64), (28672, 8192, 128), (4096, 11008, 32)]


def tiles(rows: int, columns: int, group_size: int) -> RowTiles:
    shape = row_tiles_shape(rows, columns, group_size, 2, False, torch.float16)
    return RowTiles(torch.empty(shape, device="meta"), rows, columns, group_size, 2, False, torch.float16)


def test_buckets_cover_every_number_of_rows() -> None:
    assert [bucket_of(rows) for rows in (1, 2, 8, 9, 16, 17, 64, 65, 512, 9000)] == [
        *(1, 8, 8, 16, 16, 64, 64, 512, 512, 512),
    ]


@pytest.mark.parametrize(("group_size", "few", "many"), [(32, 1, 1), (64, 2, 2), (96, 1, 1), (128, 4, 2), (320, 2, 2)])
def test_a_step_divides_a_group(group_size: int, few: int, many: int) -> None:
    weight = tiles(16, 960, group_size)
    assert (step_words(weight, 1, False), step_words(weight, 64, False)) == (few, many)
    assert step_words(weight, 1, True) == many


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bucket", BUCKETS)
def test_candidates_are_of_the_kernel_for_the_rows_and_start_with_the_default(
    bucket: int, shape: tuple[int, int, int], wide: bool
) -> None:
    candidates = candidate_configurations(tiles(*shape), bucket, wide)
    assert candidates[0] == default_configuration(tiles(*shape), bucket, wide)
    assert len(set(candidates)) == len(candidates)
    for configuration in candidates:
        assert isinstance(configuration, GemvConfiguration) == (bucket <= 16)
        if isinstance(configuration, GemvConfiguration):
            assert configuration.segments % configuration.warps == 0


def test_a_narrow_output_is_split_and_a_wide_one_is_not() -> None:
    narrow = default_configuration(tiles(1024, 8192, 64), 1, False)
    wide = default_configuration(tiles(28672, 8192, 64), 1, False)
    assert isinstance(narrow, GemvConfiguration)
    assert isinstance(wide, GemvConfiguration)
    assert narrow.parts > 1
    assert wide.parts == 1


def test_a_plan_survives_being_written() -> None:
    assert read_plan(write_plan(PLAN)) == PLAN
    assert read_plan("") == {}


def test_the_cache_returns_what_was_written_and_keeps_other_entries(tmp_path: Path) -> None:
    path = tmp_path / "kernels" / "gpu.json"
    TuningCache(path).write("first", PLAN)
    TuningCache(path).write("second", {1: GemvConfiguration(1, 4, 4, 3)})
    assert TuningCache(path).read("first") == PLAN
    assert TuningCache(path).read("second") == {1: GemvConfiguration(1, 4, 4, 3, 1)}
    assert TuningCache(path).read("third") is None
    assert [file.name for file in path.parent.iterdir()] == ["gpu.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_broken_cache_file_is_ignored_with_a_warning(tmp_path: Path, content: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(content)
    with pytest.warns(UserWarning, match="ignored"):
        assert TuningCache(path).read("first") is None
    with pytest.warns(UserWarning, match="ignored"):
        TuningCache(path).write("first", PLAN)
    assert TuningCache(path).read("first") == PLAN


@pytest.mark.parametrize(
    "entry",
    [{"1": {"tiles": 0, "segments": 4, "warps": 4, "stages": 3, "parts": 1}}, {"1": {"width": 4}}, [3], {"a": {}}],
)
def test_a_wrong_entry_is_ignored_with_a_warning(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"first": entry}))
    with pytest.warns(UserWarning, match="no configuration"):
        assert TuningCache(path).read("first") is None


def test_a_cache_that_cannot_be_written_costs_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        TuningCache(tmp_path / "file" / "gpu.json").write("first", PLAN)


def test_the_file_is_one_a_gpu_triton_and_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBIT_CACHE_DIR", str(tmp_path))
    first = cache_path("NVIDIA H100 80GB HBM3", "3.7.1")
    assert first.parent == tmp_path / "kernels"
    assert "nvidia-h100-80gb-hbm3" in first.name
    others = {cache_path("NVIDIA A100", "3.7.1"), cache_path("NVIDIA H100 80GB HBM3", "3.8.0")}
    monkeypatch.setattr(triton_tuner, "_source_hash", lambda: "other")
    others.add(cache_path("NVIDIA H100 80GB HBM3", "3.7.1"))
    assert len(others | {first}) == 4
    monkeypatch.delenv("LOWBIT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_path("gpu", "3").parent == tmp_path / "xdg" / "lowbit" / "kernels"


def test_workloads_that_run_differently_have_different_keys() -> None:
    keys = {workload_key(tiles(*shape), dtype) for shape in SHAPES for dtype in (torch.float16, torch.float32)}
    assert len(keys) == 2 * len(SHAPES)


def test_the_fastest_configuration_that_runs_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = tiles(64, 256, 64)
    weight = RowTiles(torch.zeros(weight.words.shape, dtype=torch.int32), 64, 256, 64, 2, False, torch.float16)
    candidates = candidate_configurations(weight, 64, False)

    def milliseconds(x: object, tiles: object, configuration: Configuration) -> float:
        if configuration == candidates[0]:
            raise RuntimeError("out of shared memory")
        return 3.0 - candidates.index(configuration)

    monkeypatch.setattr(triton_tuner, "_milliseconds", milliseconds)
    assert triton_tuner._fastest(weight, torch.float16, 64) == candidates[-1]
    monkeypatch.setattr(triton_tuner, "_milliseconds", lambda *arguments: 1 / 0)
    with pytest.raises(Exception, match="no configuration of the Triton kernel runs for 64 rows"):
        triton_tuner._fastest(weight, torch.float16, 64)
