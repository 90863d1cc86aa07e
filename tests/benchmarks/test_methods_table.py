"""The table of all methods: its plan, its cells on a real model, its rows, and continuation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from lowbit.errors import LowbitError
from lowbit.registry import registry

BENCHMARK = "methods_table"


def make_cell(table: ModuleType, method: str, seed: int, perplexity: float | None, bits: float) -> object:
    signature = {"versions": {"lowbit": "1"}, "plugins": {"mine": "2"}}
    date = f"2026-01-0{seed + 1}T00:00:00+00:00"
    group = None if method == "none" else 64
    return table.Cell("m", method, group, seed, signature, date, "t", "ppl", perplexity, (2.0, 2.5, bits), 3)


def test_every_method_is_planned_once_and_calibrated_ones_with_every_seed(benchmark_module: ModuleType) -> None:
    names = benchmark_module.method_names()
    recipes = [(registry().method(name).quantizer, str(registry().method(name).options)) for name in names]
    assert len(set(recipes)) == len(recipes) and "none" not in names
    jobs = list(benchmark_module.plan([None], names, [32, 128], [0, 1, 2]))
    seeds = {name: [(job.group, job.seed) for job in jobs if job.method == name] for name in names}
    assert seeds["rtn"] == [(32, 0), (128, 0), (64, 0)]
    assert seeds["gptq"] == [(size, seed) for seed in range(3) for size in (32, 128)]
    assert seeds["pbllm"][:3] == [(32, 0), (128, 0), (-1, 0)]
    assert jobs == sorted(jobs, key=lambda job: job.seed)


def test_the_group_goes_to_the_option_that_the_quantizer_has(benchmark_module: ModuleType, stories: Path) -> None:
    settings = benchmark_module.Settings("mirror", 4, 64, 2)
    import methods_cells

    for method, option in (("gptq-code", "group_size"), ("billm-code", "block_size")):
        recipe = methods_cells.recipe_of(benchmark_module.Job(str(stories), method, 32, 5), settings)
        assert recipe.quantizer.options[option] == 32
        assert recipe.quantizer.options["fidelity"] == "code"
        assert (recipe.seed, recipe.calibration.source, recipe.calibration.seq_len) == (5, "wikitext2", 64)
        assert recipe.eval.tasks == ("wikitext2_ppl@64",)
    embedded = methods_cells.recipe_of(benchmark_module.Job(None, "rtn", 32, 0), settings)
    assert (embedded.eval.tasks, embedded.eval.limit, embedded.calibration.source) == (("smallworld_text",), None, None)
    with pytest.raises(LowbitError, match="quantizes nothing"):
        list(benchmark_module.plan([None], ["none"], [32], [0]))


def test_cells_of_a_real_model_are_made_once(
    benchmark_module: ModuleType, stories: Path, mirror: Path, tmp_path: Path
) -> None:
    settings = benchmark_module.Settings(str(mirror), 2, 32, 2)
    parent, job = (benchmark_module.Job(str(stories), *what, 0) for what in (("none", None), ("gptq", 32)))
    assert benchmark_module.finished(job, settings, tmp_path) is None
    (tmp_path / "cells").mkdir()
    unquantized = benchmark_module.run_job(parent, settings, tmp_path)
    cell = benchmark_module.run_job(job, settings, tmp_path)
    assert (cell.task, cell.evaluated, cell.error) == ("wikitext2_ppl@32", 2, None)
    assert cell.perplexity > unquantized.perplexity > 1
    assert cell.bits[0] == 2 and cell.bits[0] < cell.bits[1] < cell.bits[2] < unquantized.bits[2]
    assert (cell.calibration["name"], cell.calibration["n_samples"], cell.calibration["seed"]) == ("wikitext2", 2, 0)
    assert len(list((tmp_path / "parents").iterdir())) == 1
    assert not list(tmp_path.rglob("*.safetensors"))

    assert benchmark_module.finished(job, settings, tmp_path) == cell
    assert benchmark_module.finished(job, replace(settings, limit=3), tmp_path) is None
    assert benchmark_module.finished(replace(job, seed=1), settings, tmp_path) is None
    quiet = Console(quiet=True)
    assert benchmark_module.run_all([job], settings, tmp_path, 1, quiet) == [unquantized, cell]


def test_a_failure_is_kept_shown_and_made_again(
    benchmark_module: ModuleType, stories: Path, mirror: Path, tmp_path: Path
) -> None:
    settings = benchmark_module.Settings(str(mirror), 10**7, 32, 2)
    job = benchmark_module.Job(str(stories), "gptq", 32, 0)
    (tmp_path / "cells").mkdir()
    cell = benchmark_module.run_job(job, settings, tmp_path)
    assert "too few for 10000000 windows" in cell.error
    assert benchmark_module.table_rows([cell]) == [["gptq", "32", "seed 0", "failed", "", "", "", ""]]
    assert benchmark_module.finished(job, settings, tmp_path) is None


def test_rows_stand_by_file_bits_with_median_and_spread(
    benchmark_module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [make_cell(benchmark_module, "none", 0, 10.0, 16.0)]
    cells += [make_cell(benchmark_module, "late", seed, value, 5.0) for seed, value in enumerate((30.0, 20.0, 25.0))]
    cells += [make_cell(benchmark_module, "early", 0, None, 3.0)]
    assert benchmark_module.table_rows(cells) == [
        ["early", "64", "1", "2.00", "2.50", "3.00", "not finite", "not finite"],
        ["late", "64", "3", "2.00", "2.50", "5.00", "25.00 (20.00 to 30.00)", "2.50"],
        ["parent", "-", "1", "2.00", "2.50", "16.00", "10.00", "1.00"],
    ]
    benchmark_module.print_tables(cells, markdown=True)
    text = capsys.readouterr().out
    assert "2026-01-01T00:00:00+00:00 to 2026-01-03" in text and "seeds 0, 1, 2" in text and "lowbit 1" in text
    assert "| late | 64 | 3 | 2.00 | 2.50 | 5.00 | 25.00 (20.00 to 30.00) | 2.50 |" in text
