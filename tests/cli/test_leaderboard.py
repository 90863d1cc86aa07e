from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from results.stored_runs import store_run

from lowbit.cli.leaderboard import command
from lowbit.errors import LowbitError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store_run(tmp_path, "parent", {"piqa.acc": 0.8}, minute=0, bits=16)
    store_run(tmp_path, "gptq", {"piqa.acc": 0.7}, minute=1)
    store_run(tmp_path, "rtn", {"piqa.acc": 0.6}, minute=2)
    store_run(tmp_path, "rtn", {"piqa.acc": 0.5}, minute=3, model="opt")
    return tmp_path


def leaderboard(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


@pytest.mark.parametrize(
    ("form", "expected"),
    [("table", "gptq"), ("markdown", "| **0.7000** |"), ("csv", "llama,gptq,0.7,"), ("latex", r"\textbf{0.7000}")],
)
def test_every_form_is_printed(folder: Path, form: str, expected: str) -> None:
    assert expected in leaderboard(folder, "--columns", "method,piqa", "--format", form).output


def test_broken_files_are_named_and_the_rest_is_shown(folder: Path) -> None:
    broken = folder / "llama__rtn" / "results_2026-11-22T11-00-00.json"
    broken.write_text('{"results"')
    result = leaderboard(folder, "--format", "csv")
    assert f"{broken} is left out" in result.stderr
    assert "gptq" in result.stdout


def test_models_and_methods_can_be_chosen(folder: Path) -> None:
    text = leaderboard(folder, "--models", "llama", "--methods", "rtn", "--columns", "method", "--format", "csv").output
    assert text.splitlines()[1:] == ["llama,parent,", "llama,rtn,"]
    with pytest.raises(LowbitError, match="no method 'awq' here; there are: gptq"):
        leaderboard(folder, "--methods", "awq")


def test_a_file_can_be_written(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "paper" / "table.tex"
    assert leaderboard(folder, "--format", "latex", "-o", target).output == ""
    assert r"\bottomrule" in target.read_text()
    with pytest.raises(LowbitError, match="--format markdown, csv or latex"):
        leaderboard(folder, "-o", target)


def test_the_names_of_columns_can_be_listed(folder: Path) -> None:
    names = leaderboard(folder, "--columns", "help").output.split()
    assert {"method", "bits.file", "piqa.acc", "recovery.piqa"} <= set(names)


def test_an_empty_directory_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="lowbit bench -o"):
        leaderboard(tmp_path)
