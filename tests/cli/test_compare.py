from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from results.stored_runs import store_run

from lowbit.cli.compare import command
from lowbit.errors import LowbitError
from lowbit.results.store import read_results

RIGHT = [1.0] * 12 + [0.0] * 8
FEWER = [1.0] * 3 + [0.0] * 17


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store_run(tmp_path, "gptq", {"piqa.acc": 0.6}, scores={"piqa.acc": RIGHT}, minute=1)
    store_run(tmp_path, "rtn", {"piqa.acc": 0.15}, scores={"piqa.acc": FEWER}, minute=2)
    return tmp_path


def compare(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def test_runs_are_given_as_file_folder_or_identity(folder: Path) -> None:
    gptq, rtn = read_results(folder).results
    answers = [
        compare(first, second, "--results", folder, "--format", "json", "--resamples", 200).output
        for first in (gptq.path, gptq.path.parent, gptq.identity, gptq.identity[:6])
        for second in (rtn.path,)
    ]
    assert len(set(answers)) == 1
    (row,) = json.loads(answers[0])["comparisons"]
    assert row["p"] == pytest.approx(2 / 2**9) and row["verdict"] == "worse"


def test_the_table_names_runs_and_verdict(folder: Path) -> None:
    gptq, rtn = read_results(folder).results
    text = compare(gptq.path, rtn.path).output
    assert "worse" in text and "McNemar" in text
    assert all(run.identity in text for run in (gptq, rtn))


def test_a_seed_that_changes_more_is_a_warning(folder: Path) -> None:
    store_run(folder, "rtn", {"piqa.acc": 0.9}, seed=1, minute=3)
    first, second, _ = read_results(folder).results
    assert "lowbit: warning: piqa acc: 2 seeds of rtn" in compare(first.path, second.path).stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{folder}", "{folder}"], "holds 2 results where one was expected"),
        (["abcd", "efgh"], "no result in"),
        (["{folder}/other.json", "{folder}"], "is no result"),
    ],
)
def test_what_is_no_single_run_is_refused(folder: Path, arguments: list[str], reason: str) -> None:
    (folder / "other.json").write_text("{}")
    with pytest.raises(LowbitError, match=reason):
        compare(*(text.format(folder=folder) for text in arguments), "--results", folder)


def test_an_identity_without_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="--results DIR"):
        compare("abcd", "efgh", "--results", tmp_path / "absent")


def test_a_damaged_file_is_named(folder: Path) -> None:
    first, second = (run.path for run in read_results(folder).results)
    second.write_text("{")
    with pytest.raises(LowbitError, match=f"{re.escape(second.name)} is no whole JSON file"):
        compare(first, second)


def test_a_name_longer_than_any_file_may_have_is_no_run(folder: Path) -> None:
    with pytest.raises(LowbitError, match="has the identity"):
        compare("x" * 300, "y", "--results", folder)


def test_a_seed_below_zero_is_refused(folder: Path) -> None:
    result = CliRunner().invoke(command, ["a", "b", "--seed", "-1"])
    assert result.exit_code == 2 and "x>=0" in result.output
