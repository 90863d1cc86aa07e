from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from results.stored_runs import START, store_run

from lowbit.errors import LowbitError
from lowbit.results.store import date_in_name, read_neighbours, read_results

VALUES = {"piqa.acc": 0.5}


def test_results_come_by_date_with_what_they_say_of_themselves(tmp_path: Path) -> None:
    store_run(tmp_path, "rtn", VALUES, minute=2, seed=3)
    store_run(tmp_path, "parent", VALUES, minute=1, bits=16)
    parent, quantized = read_results(tmp_path).results
    assert (parent.role, parent.method, parent.model, parent.seed) == ("parent", "parent", "llama", None)
    assert (quantized.role, quantized.method, quantized.model, quantized.seed) == ("quantized", "rtn", "llama", 3)
    assert quantized.recipe_sha256 == "rtn-3"
    assert quantized.bits is not None and quantized.bits["nominal_bits"] == 2.0
    assert quantized.date == START.replace(minute=2)
    assert [(metric.task, metric.key, metric.value) for metric in quantized.metrics] == [("piqa", "acc,none", 0.5)]


def test_samples_are_those_of_the_same_run(tmp_path: Path) -> None:
    store_run(tmp_path, "rtn", VALUES, minute=1, scores={"piqa.acc": [1.0, 0.0]})
    store_run(tmp_path, "rtn", VALUES, minute=2)
    first, second = read_results(tmp_path).results
    assert set(first.samples) == {"piqa"}
    assert first.samples["piqa"].name.endswith("10-01-00.000000+00-00.jsonl")
    assert second.samples == {}


def test_an_identity_stays_when_the_directory_moves_and_finds_its_run(tmp_path: Path) -> None:
    for minute in range(6):
        store_run(tmp_path / "here", "rtn", VALUES, minute=minute)
    before = read_results(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = read_results(tmp_path / "there")
    assert [run.identity for run in before.results] == [run.identity for run in after.results]
    assert len({run.identity for run in after.results}) == 6
    wanted = after.results[4]
    assert after.find(wanted.identity) is wanted
    with pytest.raises(LowbitError, match="no result in"):
        after.find("zzzz")
    with pytest.raises(LowbitError, match="several results"):
        after.find("")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ('{"results": {"piqa": {"acc,no', "no whole JSON"),
        ("[1, 2]", "no section"),
        ('{"results": 3}', "no section"),
        ('{"results": {"piqa": {"acc,none": 0.5}}, "higher_is_better": 7}', "`higher_is_better` is not an object"),
        ('{"results": {"piqa": {"acc,none": 0.5}}, "model_name": "\\ud800"}', "half a character"),
        ("[" * 100_000, "no whole JSON"),
    ],
)
def test_a_broken_file_is_listed_and_stops_nothing(tmp_path: Path, text: str, reason: str) -> None:
    store_run(tmp_path, "rtn", VALUES)
    broken = tmp_path / "llama__rtn" / "results_2026-11-22T11-00-00.000000+00-00.json"
    broken.write_text(text)
    found = read_results(tmp_path)
    assert len(found.results) == 1
    assert [path for path, _ in found.unreadable] == [broken]
    assert reason in found.unreadable[0][1]


def test_what_is_no_result_is_passed_over(tmp_path: Path) -> None:
    store_run(tmp_path, "rtn", VALUES)
    for place in ("checkpoints/llama__rtn-1", "parents", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "checkpoints" / "llama__rtn-1" / "config.json").write_text("{}")
    (tmp_path / "parents" / "abc.json").write_text('{"results": {"results": {}}}')
    (tmp_path / "elsewhere" / "notes.json").write_text("not JSON at all")
    (tmp_path / "llama__rtn" / "results.json.17-abcdef.tmp").write_text("{")
    found = read_results(tmp_path)
    assert len(found.results) == 1 and found.unreadable == ()


def test_a_model_may_be_called_checkpoints(tmp_path: Path) -> None:
    store_run(tmp_path, "parent", VALUES, model="checkpoints")
    assert [run.model for run in read_results(tmp_path).results] == ["checkpoints"]


def test_lm_evals_own_file_is_read_as_of_unknown_making(tmp_path: Path) -> None:
    folder = tmp_path / "org__model"
    folder.mkdir()
    content = {"results": {"piqa": {"acc,none": 0.5, "alias": "piqa"}}, "model_name": "org/model", "date": 1.0}
    (folder / "results_2026-11-22T11-00-00.123456.json").write_text(json.dumps(content))
    (run,) = read_results(tmp_path).results
    assert (run.role, run.method, run.model, run.bits) == ("other", "org/model", "model", None)
    assert run.date == datetime(2026, 11, 22, 11, 0, 0, 123456, tzinfo=UTC)


def test_a_directory_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="no results directory"):
        read_results(tmp_path / "absent")


def test_dates_are_read_out_of_names_and_out_of_nothing_else() -> None:
    assert date_in_name("foo_2026-11-22T10-30-00.123456+00-00") == datetime(2026, 11, 22, 10, 30, 0, 123456, UTC)
    assert date_in_name("results_2026-13-45T10-30-00") is None
    assert date_in_name("config") is None


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("lowbit.recovery", [1], "`lowbit.recovery` is not an object, but list"),
        ("lowbit.recovery.piqa", "x", "`lowbit.recovery.piqa` is not an object, but the text 'x'"),
        ("lowbit.recipe", 7, "`lowbit.recipe` is not an object, but the number 7"),
        ("lowbit.data_sha256.piqa", 7, "`lowbit.data_sha256.piqa` is not a text"),
        ("lowbit.layers", {}, "`lowbit.layers` is not a list"),
        ("lowbit", 7, "`lowbit` is not an object"),
        ("n-samples.piqa", 3, "`n-samples.piqa` is not an object"),
        ("config.limit", "x", "`config.limit` is not a number"),
        ("system_instruction_sha", 1, "`system_instruction_sha` is not a text"),
        ("group_subtasks", 1, "`group_subtasks` is not an object"),
    ],
)
def test_a_section_of_another_type_is_named(tmp_path: Path, place: str, value: object, told: str) -> None:
    path = store_run(tmp_path, "rtn", VALUES, recovery=90.0)
    content = json.loads(path.read_text())
    *above, last = place.split(".")
    section = content
    for key in above:
        section = section[key]
    section[last] = value
    path.write_text(json.dumps(content))
    found = read_results(tmp_path)
    assert found.results == ()
    assert told in found.unreadable[0][1]
    section[last] = None
    path.write_text(json.dumps(content))
    assert len(read_results(tmp_path).results) == 1


def test_copies_of_one_result_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    path = store_run(tmp_path, "rtn", VALUES)
    shutil.copytree(path.parent, tmp_path / "copy")
    found = read_results(tmp_path)
    with pytest.raises(LowbitError, match=r"copy.*give the file's path"):
        found.find(found.results[0].identity)


def test_what_is_not_found_may_be_among_the_unreadable(tmp_path: Path) -> None:
    store_run(tmp_path, "rtn", VALUES)
    (tmp_path / "results_2026-11-22T11-00-00.json").write_text("{")
    with pytest.raises(LowbitError, match=r"not readable: .*T11-00-00.json is no whole JSON"):
        read_results(tmp_path).find("zzzz")


def test_neighbours_are_looked_for_beside_a_run_and_nowhere_below(tmp_path: Path) -> None:
    beside = store_run(tmp_path / "a", "rtn", VALUES).parent
    store_run(tmp_path / "a" / "llama__rtn" / "deeper", "gptq", VALUES)
    (beside / "results_2026-11-22T11-00-00.json").write_text("{")
    assert [run.method for run in read_neighbours(beside)] == ["rtn"]
