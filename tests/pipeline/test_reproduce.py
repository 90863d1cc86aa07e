"""Cells run again on real models: verdicts from real numbers, the parent's check, and the result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowbit import LowbitError, PublishedCell, PublishedProtocol, PublishedResults
from lowbit.embedded import task_configs
from lowbit.pipeline.bench import BenchOptions
from lowbit.pipeline.reproduce import Reproduction, reproduce
from lowbit.pipeline.reproduction_plan import make_plan
from lowbit.pipeline.reproduction_record import write_reproduction
from lowbit.registry import registry
from lowbit.results.reproduction import Verdict

CHOICE, TEXT = "smallworld_choice", "smallworld_text"
LIMIT = {"eval": {"limit": 10, "bootstrap_iters": 0}}


def cell(label: str, **changes: Any) -> PublishedCell:
    given = {"label": label, "model": "embedded", "method": "rtn", "tasks": (CHOICE,), "metric": "acc", "value": 50.0}
    return PublishedCell(**{**given, "source": "Table 1", **changes})


def run(folder: Path, *cells: PublishedCell) -> Reproduction:
    results = PublishedResults(version=1, paper="mine", title="Mine", protocol=PublishedProtocol(seed=0), cells=cells)
    return reproduce(make_plan(results, cells, None, LIMIT), BenchOptions(folder, extra_tasks=task_configs()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(scope="module")
def measured(folder: Path) -> Reproduction:
    """What the models give, found with published numbers that mean nothing."""
    return run(
        folder,
        cell("RTN", tasks=(TEXT,), metric="word_perplexity", parent=1.0),
        cell("RTN", parent=1.0),
        cell("RTN", tasks=(CHOICE, TEXT), source="mixed"),
        cell("DB", method="dbllm-ptq", tasks=(TEXT,), metric="word_perplexity"),
    )


def ours(measured: Reproduction, number: int) -> float:
    value = measured.cells[number].ours
    assert value is not None
    return value


def test_each_cell_has_the_number_that_the_bench_measured(measured: Reproduction) -> None:
    [rtn, dbllm] = measured.rows.values()
    assert (rtn.method, dbllm.method) == ("rtn", "dbllm-ptq")
    assert ours(measured, 0) == rtn.metrics[TEXT].value
    assert ours(measured, 1) == 100 * rtn.metrics[CHOICE].value
    assert ours(measured, 3) == dbllm.metrics[TEXT].value
    assert [parent.ours for parent in measured.parents] == [rtn.parent[TEXT].value, 100 * rtn.parent[CHOICE].value]


def test_a_metric_that_a_task_does_not_have_fails_with_those_it_has(measured: Reproduction) -> None:
    mixed = measured.cells[2]
    assert mixed.verdict == Verdict.FAIL
    assert f"there is no acc of {TEXT}; measured: " in mixed.reason and f"{CHOICE} acc" in mixed.reason


def test_real_numbers_pass_are_near_and_fail(folder: Path, measured: Reproduction) -> None:
    text: dict[str, Any] = {"tasks": (TEXT,), "metric": "word_perplexity"}
    value, parent = ours(measured, 0), measured.parents[0].ours
    found = run(
        folder,
        cell("as published", **text, value=value / 1.03, parent=parent),
        cell("near", **text, value=value / 1.08, parent=parent, source="b"),
        cell("worse", **text, value=value / 1.2, source="c"),
        cell("better", **text, value=value * 1.5, source="d"),
        cell("wide", **text, value=value / 1.2, source="e", tolerance=0.2),
        cell("other", method=None, note="lowbit has none"),
    )
    verdicts = [Verdict.PASS, Verdict.NEAR, Verdict.FAIL, Verdict.FAIL, Verdict.PASS, Verdict.SKIPPED]
    assert [comparison.verdict for comparison in found.cells] == verdicts
    assert [comparison.better for comparison in found.cells] == [False, False, False, True, False, False]
    assert found.cells[0].ours == value
    [checked] = found.parents  # one number of the parent, however many cells name it
    assert checked.verdict == Verdict.PASS and checked.difference == pytest.approx(0)


def test_the_result_file_says_what_was_run_and_is_never_overwritten(folder: Path, measured: Reproduction) -> None:
    first, second = (write_reproduction(measured, folder, "cpu") for _ in range(2))
    assert first != second
    assert first.name.startswith("reproduce_mine__embedded_")
    record = json.loads(first.read_text(encoding="utf-8"))
    assert record["counts"]["FAIL"] == sum(cell.verdict == Verdict.FAIL for cell in measured.cells)
    assert record["changes_of_protocol"] == ["limit 10 (published: everything)"]
    assert record["versions"]["lowbit"] and record["plugins"]
    [text, *_] = record["cells"]
    assert text["ours"] == ours(measured, 0)
    assert text["recipe"]["quantizer"]["name"] == "rtn"
    assert text["bits"]["nominal"] == 2.0
    assert text["published_cell"]["source"] == "Table 1"
    assert text["difference_percent"] == pytest.approx(100 * (text["ours"] / text["published"] - 1))


def test_a_run_that_breaks_fails_its_cells_and_no_others(tmp_path: Path, folder: Path) -> None:
    plugin = tmp_path / "broken_for_reproduction.py"
    plugin.write_text(
        "from lowbit import LowbitError, Method, WeightQuantizer, hookimpl\n"
        "class Broken(WeightQuantizer):\n"
        "    name = 'broken-for-reproduction'\n"
        "    def quantize(self, weight, statistics, generator):\n"
        "        raise LowbitError('this quantizer is broken')\n"
        "@hookimpl\n"
        "def lowbit_weight_quantizers():\n    yield Broken\n"
        "@hookimpl\n"
        "def lowbit_methods():\n    yield Method(Broken.name, quantizer=Broken.name)\n"
    )
    registry().load(str(plugin))
    found = run(folder, cell("broken", method="broken-for-reproduction", parent=50.0), cell("RTN", tolerance=1.0))
    assert [comparison.verdict for comparison in found.cells] == [Verdict.FAIL, Verdict.PASS]
    assert found.cells[0].reason == "this quantizer is broken"
    assert found.parents[0].ours is not None  # the parent was evaluated all the same


def test_a_plan_with_nothing_to_run_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="none of the 1 chosen cells can be run: it is trained"):
        run(tmp_path, cell("other", method=None, note="it is trained"))


def test_rows_carry_every_metric_of_a_result_and_of_its_parent(measured: Reproduction) -> None:
    for row in measured.rows.values():
        names = {(metric.task, metric.name) for metric in row.measured}
        assert {(TEXT, "word_perplexity"), (TEXT, "bits_per_byte")} <= names
        assert names == {(metric.task, metric.name) for metric in row.parent_measured}
