"""`lowbit reproduce` from the command line: plan, table, warnings and exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowbit.cli.main import main

TEXT = {"tasks": ["wikitext2_ppl"], "metric": "token_perplexity"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", *arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def targets(folder: Path, *cells: dict[str, Any]) -> str:
    head = {"version": 1, "paper": "mine", "title": "Mine", "protocol": {"calibration": "c4", "seed": 0}}
    defaults = {"label": "RTN 3 bits", "method": "rtn", "options": {"bits": 3}, "source": "own measurement"}
    path = folder / "mine.json"
    path.write_text(json.dumps({**head, "cells": [{**defaults, **cell} for cell in cells]}, indent=1))
    return str(path)


def result(folder: Path) -> dict[str, Any]:
    [file] = folder.glob("reproduce_*.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_a_real_model_is_compared_with_targets_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, english: Path, mirror: Path
) -> None:
    common = ["--model", str(english), "--data_dir", str(mirror), "--limit", "2"]
    guess = targets(tmp_path, {"model": "english5m", **TEXT, "value": 1.0, "parent": 1.0})
    code, out, error = run(capsys, "--targets", guess, *common, "-o", str(tmp_path / "first"))
    assert code == 1
    assert "1 FAIL" in out
    assert "THE PROTOCOL DIFFERS: the unquantized model's wikitext2_ppl@512 token_perplexity" in error
    assert "not the published protocol: limit 2" in error
    found = result(tmp_path / "first")
    parent, ours = found["parents"][0]["ours"], found["cells"][0]["ours"]
    assert 40 < parent < ours

    cells = [
        {"model": name, **TEXT, "value": ours * by, "parent": parent} for name, by in (("*", 1.0), (str(english), 1.07))
    ]
    known = targets(tmp_path, *cells)
    code, out, error = run(capsys, "--targets", known, *common, "-o", str(tmp_path / "second"))
    assert code == 0
    assert "1 PASS, 1 NEAR; " in out and "NEAR (better)" in out
    assert "PROTOCOL DIFFERS" not in error
    assert result(tmp_path / "second")["counts"] == {"PASS": 1, "NEAR": 1, "FAIL": 0, "SKIPPED": 0}


def test_a_dry_run_prints_cells_recipe_and_protocol_and_reads_no_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["--paper", "dbllm", "--model", "meta-llama/Llama-2-7b-hf", "--dry_run", "-o", str(output)]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "7.23" in out and "arXiv 2407.11062 Table 2, quoted by EfficientQAT" in out
    assert "context_length 2048" in out and "wikitext2_ppl@2048, c4_ppl@2048" in out
    assert "not run: OmniQuant W2 g64 (previous best)" in out
    assert not output.exists()


def test_a_dry_run_shows_the_calibration_that_is_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = targets(tmp_path, {"model": "*", **TEXT, "value": 9.0})
    _, out, _ = run(capsys, "--targets", file, "--calibration", "mine.npz", "--n_samples", "8", "--dry_run")
    assert "not the published protocol: calibration mine.npz (published: c4)" in out
    assert "calibration: source mine.npz, n_samples 8, seed 0" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--paper", "nothing"], "there is no paper named 'nothing'; known: "),
        (["--paper", "dbllm", "--model", "org/other"], "models with cells: meta-llama/Llama-2-7b-hf, "),
        (["--paper", "dbllm", "--model", "huggyllama/llama-7b", "--metric", "mmlu"], "known: wikitext2_ppl, "),
        (["--targets", "absent.json"], "absent.json"),
        ([], "no paper is named; known: "),
    ],
)
def test_a_wrong_request_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    code, _, error = run(capsys, *arguments)
    assert code == 1
    assert error.startswith("lowbit: error: ") and error.strip().count("\n") == 0
    assert expected in error


def test_a_wrong_file_is_one_clear_line_with_the_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = targets(tmp_path, {"model": "*", **TEXT, "value": 9.0, "sauce": "Table 1"})
    code, _, error = run(capsys, "--targets", file)
    assert code == 1
    assert "mine.json, line " in error and "unknown key cells.0.sauce; did you mean source?" in error


def test_the_papers_are_listed_with_the_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plugins", "show", "dbllm"])
    out = capsys.readouterr().out
    assert "paper dbllm, registered by" in out
    assert "DB-LLM on LLaMA, as others quote it" in out
