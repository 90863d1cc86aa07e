from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lowbit.errors import LowbitError
from lowbit.results.record import sanitize, write_result

MOMENT = datetime(2026, 11, 22, 10, 30, 0, 123456, tzinfo=UTC)
HARNESS = {"results": {"piqa": {"acc,none": 0.5}}, "samples": {"piqa": [{"doc_id": 0}, {"doc_id": 1}]}}


def test_a_result_lies_where_lm_eval_puts_it_with_one_key_more(tmp_path: Path) -> None:
    path = write_result(tmp_path, "org/model", HARNESS, {"seed": 1}, MOMENT)
    assert path == tmp_path / "org__model" / "results_2026-11-22T10-30-00.123456+00-00.json"
    content = json.loads(path.read_text())
    assert content == {"results": HARNESS["results"], "lowbit": {"seed": 1}}
    samples = path.with_name("samples_piqa_2026-11-22T10-30-00.123456+00-00.jsonl").read_text().splitlines()
    assert [json.loads(line)["doc_id"] for line in samples] == [0, 1]


def test_a_json_path_gets_the_date_in_its_name(tmp_path: Path) -> None:
    path = write_result(tmp_path / "foo.json", "m", HARNESS, {}, MOMENT)
    assert path.parent == tmp_path
    assert path.name.startswith("foo_2026-11-22T")


def test_a_result_is_never_overwritten_but_gets_the_next_name(tmp_path: Path) -> None:
    first = write_result(tmp_path, "m", HARNESS, {"run": 1}, MOMENT)
    second = write_result(tmp_path, "m", {**HARNESS, "samples": {"piqa": [{"doc_id": 7}]}}, {"run": 2}, MOMENT)
    assert second.name == "results_2026-11-22T10-30-00.123457+00-00.json"
    assert [json.loads(path.read_text())["lowbit"]["run"] for path in (first, second)] == [1, 2]
    samples = second.with_name("samples_piqa_2026-11-22T10-30-00.123457+00-00.jsonl")
    assert json.loads(samples.read_text()) == {"doc_id": 7}
    assert len(list((tmp_path / "m").iterdir())) == 4


def test_samples_that_a_killed_run_left_are_not_taken_by_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    orphan = tmp_path / "m" / "samples_piqa_2026-11-22T10-30-00.123456+00-00.jsonl"
    orphan.write_text("of a run that was killed\n")
    path = write_result(tmp_path, "m", HARNESS, {}, MOMENT)
    assert path.name == "results_2026-11-22T10-30-00.123457+00-00.json"
    assert orphan.read_text() == "of a run that was killed\n"


def test_results_of_the_same_instant_all_get_their_samples(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda run: write_result(tmp_path, "m", made_by(run), {"run": run}, MOMENT), range(40)))
    assert len(set(paths)) == 40
    for run, path in enumerate(paths):
        assert json.loads(path.read_text())["lowbit"] == {"run": run}
        samples = path.with_name(path.name.replace("results_", "samples_piqa_") + "l")
        assert json.loads(samples.read_text()) == {"doc_id": run}
    assert not list(tmp_path.rglob("*.tmp"))


def made_by(run: int) -> dict[str, Any]:
    return {**HARNESS, "samples": {"piqa": [{"doc_id": run}]}}


def test_without_hard_links_names_are_still_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda run: write_result(tmp_path, "m", made_by(run), {"run": run}, MOMENT), range(20)))
    assert len(set(paths)) == 20
    assert [json.loads(path.read_text())["lowbit"]["run"] for path in paths] == list(range(20))
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_result_appears_after_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    link = os.link

    def watched(source: Path, target: Path) -> None:
        given.append(Path(target).name.partition("_")[0])
        link(source, target)

    monkeypatch.setattr("os.link", watched)
    write_result(tmp_path, "m", {**HARNESS, "samples": {"a": [], "b": []}}, {}, MOMENT)
    assert given == ["samples", "samples", "results"]


def test_half_written_files_of_long_ago_are_removed(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    old, new = tmp_path / "m" / "results.json.1-a.tmp", tmp_path / "m" / "results.json.2-b.tmp"
    for file in (old, new):
        file.write_text("{")
    os.utime(old, (0, 0))
    write_result(tmp_path, "m", HARNESS, {}, MOMENT)
    assert not old.exists() and new.exists()


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LowbitError, match="cannot be written"):
        write_result(tmp_path / "file", "m", {"results": {}}, {}, MOMENT)


def test_numbers_that_json_cannot_hold_become_strings(tmp_path: Path) -> None:
    path = write_result(tmp_path, "m", {"results": {}}, {"loss": float("nan"), "list": [float("inf")]}, MOMENT)
    assert json.loads(path.read_text())["lowbit"] == {"loss": "nan", "list": ["inf"]}


def test_names_become_safe_folders() -> None:
    assert sanitize("a/b:c") == "a__b__c"
