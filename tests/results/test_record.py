from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

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


def test_a_result_is_never_overwritten(tmp_path: Path) -> None:
    write_result(tmp_path, "m", {"results": {}}, {"run": 1}, MOMENT)
    with pytest.raises(LowbitError, match="cannot be written"):
        write_result(tmp_path, "m", {"results": {}}, {"run": 2}, MOMENT)
    files = list((tmp_path / "m").iterdir())
    assert len(files) == 1
    assert json.loads(files[0].read_text())["lowbit"] == {"run": 1}


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LowbitError, match="cannot be written"):
        write_result(tmp_path / "file", "m", {"results": {}}, {}, MOMENT)


def test_numbers_that_json_cannot_hold_become_strings(tmp_path: Path) -> None:
    path = write_result(tmp_path, "m", {"results": {}}, {"loss": float("nan"), "list": [float("inf")]}, MOMENT)
    assert json.loads(path.read_text())["lowbit"] == {"loss": "nan", "list": ["inf"]}


def test_names_become_safe_folders() -> None:
    assert sanitize("a/b:c") == "a__b__c"
