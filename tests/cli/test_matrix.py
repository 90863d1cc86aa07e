"""`lowbit matrix` in every form."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pipeline.composition_parts import (
    LossyPacker,
    Signs,
    SignWeight,
    registered,
    shipped,
    shipped_selection,
)

from lowbit.cli.main import main
from lowbit.cli.matrix import command
from lowbit.pipeline.composition import combinations
from lowbit.pipeline.composition_sheets import COLUMNS, sheets
from lowbit.registry import registry

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "composition.md"
CELLS = {"tested", "allowed", "no", "tested, changed since"}


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    assert result.exception is None, result.exception
    assert result.return_value == code
    return result


def entries(*arguments: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("--format", "json", *arguments).stdout)
    return found


def test_the_table_names_every_part_and_counts() -> None:
    text = run().stdout
    for kind in ("weight quantizer", "distillation loss", "packer", "kernel"):
        assert all(name in text for name in shipped(kind))
    assert re.search(r"\d+ combinations: \d+ allowed, \d+ refused", text)
    assert "it runs on CUDA devices, not on cpu" in text


def test_json_and_csv_have_one_entry_a_combination_and_agree() -> None:
    listed = entries("--quantizer", "rtn,lsq")
    rows = list(csv.DictReader(io.StringIO(run("--format", "csv", "--quantizer", "rtn,lsq").stdout)))
    assert len(listed) == len(rows) > 0
    assert tuple(rows[0]) == COLUMNS
    for entry, row in zip(listed, rows, strict=True):
        assert [entry[key] for key in ("quantizer", "loss", "format", "packer", "kernel")] == [
            row[key] for key in ("quantizer", "loss", "format", "packer", "kernel")
        ]
        assert ("yes" if entry["allowed"] else "no") == row["allowed"]


def test_filters_leave_what_they_name() -> None:
    [entry] = entries("--method", "rtn", "--loss", "none", "--packer", "plain", "--kernel", "reference")
    assert entry["methods"] == ["rtn"]
    assert entry["allowed"] is True
    assert {e["loss"] for e in entries("--quantizer", "lsq", "--loss", "kl,ce")} == {"kl", "ce"}


def test_device_and_dtype_are_those_asked_for() -> None:
    found = entries("--quantizer", "rtn", "--device", "cuda", "--dtype", "bfloat16")
    assert {(e["device"], e["dtype"]) for e in found} == {("cuda", "bfloat16")}


def test_refused_lists_refused_combinations_only() -> None:
    found = entries("--refused", "--quantizer", "rtn,lsq")
    assert found
    assert all(entry["refusals"] and not entry["allowed"] for entry in found)
    text = run("--refused", "--format", "markdown").stdout
    assert text.startswith("### Refused, and why")
    assert text.count("###") == 1


def test_verify_runs_what_is_allowed() -> None:
    [entry] = entries("--verify", "--method", "rtn", "--loss", "none", "--packer", "plain", "--kernel", "reference")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(entry["tested"]))


def test_a_combination_that_fails_is_named_and_the_exit_code_is_one() -> None:
    with registered(Signs, SignWeight, LossyPacker):
        result = run("--verify", "--quantizer", "test-signs", "--packer", "test-lossy", "--loss", "none", code=1)
    assert "FAILED" in result.stdout
    assert "packing and unpacking changed signs" in result.stderr


@pytest.mark.parametrize("arguments", [["--record"], ["--record", "--verify", "--quantizer", "rtn"]])
def test_a_record_of_a_part_or_without_a_run_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["matrix", *arguments])
    assert stop.value.code == 2
    assert "--record writes" in capsys.readouterr().err


def test_an_unknown_name_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["matrix", "--quantizer", "rtm"])
    assert stop.value.code == 1
    assert "no weight quantizer named 'rtm'; did you mean rtn" in capsys.readouterr().err


def test_a_device_that_is_not_here_cannot_be_verified(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["matrix", "--verify", "--device", "meta"])
    assert stop.value.code == 1
    assert "meta" in capsys.readouterr().err


def test_a_plugin_file_takes_part(tmp_path: Path) -> None:
    file = tmp_path / "matrix_plugin.py"
    file.write_text(
        "from lowbit import DenseWeight, WeightQuantizer, hookimpl\n"
        "class Q(WeightQuantizer):\n"
        "    name = 'test-matrix-file'\n"
        "    def quantize(self, weight, statistics, generator):\n"
        "        return DenseWeight(weight.clone(), nominal_bits=32)\n"
        "@hookimpl\n"
        "def lowbit_weight_quantizers():\n    yield Q\n"
    )
    found = entries("--plugin", str(file), "--quantizer", "test-matrix-file", "--loss", "none")
    assert {entry["format"] for entry in found} == {"dense"}
    assert any(entry["allowed"] for entry in found)


def tables_of(text: str) -> dict[str, list[list[str]]]:
    """Tables of a Markdown text by the heading above them; rows without the rule."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith("| ---"):
            cells = [cell.strip().replace("<br>", "\n") for cell in line.strip("|").split(" | ")]
            found.setdefault(heading, []).append(cells)
    return found


def without_states(rows: list[list[str]]) -> list[list[str]]:
    """What was run depends on the day: only allowed or not is compared."""
    return [[("no" if cell == "no" else "yes") if cell in CELLS else cell for cell in row] for row in rows]


def test_the_documentation_shows_what_is_computed() -> None:
    found = combinations(registry(), shipped_selection())
    serving = {one.kernel for one in found if one.allowed}
    if serving != set(shipped("kernel")) - {"triton-dual-binary"}:
        pytest.skip("the documentation shows a processor that every CPU kernel serves")
    shown = tables_of(DOCUMENT.read_text(encoding="utf-8"))
    for sheet in sheets(found):
        computed = [list(sheet.header), *(list(row) for row in sheet.rows)]
        wanted = [[cell.replace("|", "\\|") for cell in row] for row in computed]
        assert sorted(without_states(shown[sheet.title])) == sorted(without_states(wanted)), sheet.title
