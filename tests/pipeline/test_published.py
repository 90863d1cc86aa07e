"""Reading files of published results: which line of which file is wrong, and which cells a model has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit import LowbitError, PublishedFile, PublishedResults, hookimpl
from lowbit.pipeline.published import cells_for, only, published_results, read_published
from lowbit.registry import PluginSource, Registry, registry

GOOD = """{
  "version": 1,
  "paper": "mine",
  "title": "Mine",
  "protocol": {"context_length": 512},
  "cells": [
    {"label": "RTN", "model": "org/tiny", "method": "rtn", "tasks": ["piqa"], "metric": "acc",
     "value": 60, "source": "T"},
    {"label": "RTN 3 bits", "model": "org/tiny", "method": "rtn", "tasks": ["wikitext2_ppl"],
     "metric": "token_perplexity", "value": 90.5, "source": "T"},
    {"label": "RTN", "model": "*", "method": "rtn", "tasks": ["boolq"], "metric": "acc", "value": 55, "source": "T"}
  ]
}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def run(text: str) -> Path:
        path = tmp_path / "mine.json"
        path.write_text(text)
        return path

    return run


@pytest.fixture
def results(write: Write) -> PublishedResults:
    return read_published(write(GOOD))


def problem(path: Path) -> str:
    with pytest.raises(LowbitError) as found:
        read_published(path)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_file_is_read(results: PublishedResults) -> None:
    assert [cell.value for cell in results.cells] == [60, 90.5, 55]


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    assert "absent.json" in problem(tmp_path / "absent.json")


def test_broken_json_is_refused_with_its_line(write: Write) -> None:
    assert "mine.json, line 6, is no JSON" in problem(write(GOOD.replace('"protocol": {', '"protocol": [{')))


def test_a_misspelled_key_is_refused_with_its_line_and_the_nearest_one(write: Write) -> None:
    message = problem(write(GOOD.replace('"metric": "token_perplexity"', '"metrics": "token_perplexity"')))
    assert "mine.json, line 9:" in message  # the cell that lacks it begins there
    assert "cells.1.metric is missing" in message and "cells.1.metrics; did you mean metric?" in message


def test_a_value_of_the_wrong_kind_is_refused_with_its_line(write: Write) -> None:
    message = problem(write(GOOD.replace("90.5", '"low"')))
    assert "mine.json, line 10: cells.1.value" in message and "got 'low'" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("90.5", "NaN"), "NaN is no number"),
        (GOOD.replace('"title": "Mine"', '"title": "Mine", "title": "Yours"'), "the key 'title' twice"),
        ("[]", "should be an object"),
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_other_damage_is_one_line(write: Write, text: str, expected: str) -> None:
    assert expected in problem(write(text))


def test_a_model_is_found_by_its_hub_id_its_folder_and_a_star(results: PublishedResults, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    assert [cell.value for cell in cells_for(results, "org/tiny")] == [60, 90.5, 55]
    assert [cell.value for cell in cells_for(results, str(folder))] == [60, 90.5, 55]
    assert [cell.value for cell in cells_for(results, f"{folder}/")] == [60, 90.5, 55]
    assert [cell.value for cell in cells_for(results, "other/tiny")] == [55]
    assert [cell.value for cell in cells_for(results, None)] == [55]


def test_a_model_without_cells_is_refused_with_those_that_have_some() -> None:
    paper = published_results(registry(), "dbllm", None)
    with pytest.raises(LowbitError, match=r"no published cell for org/unknown; .*meta-llama/Llama-2-7b-hf"):
        cells_for(paper, "org/unknown")


def test_an_unknown_paper_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LowbitError, match=r"no paper named 'dblm'; known: .*dbllm.*--targets"):
        published_results(registry(), "dblm", None)


def test_neither_paper_nor_file_is_refused() -> None:
    with pytest.raises(LowbitError, match="no paper is named"):
        published_results(registry(), None, None)


def test_a_file_of_ones_own_must_be_the_paper_that_is_asked_for(write: Write) -> None:
    path = write(GOOD)
    assert published_results(registry(), "mine", path).paper == "mine"
    with pytest.raises(LowbitError, match="results of 'mine', but --paper asks for 'dbllm'"):
        published_results(registry(), "dbllm", path)


def test_a_registered_file_must_bear_its_papers_name(tmp_path: Path) -> None:
    (tmp_path / "yours.json").write_text(GOOD)
    plugin = tmp_path / "papers.py"
    plugin.write_text(
        "from pathlib import Path\n"
        "from lowbit import PublishedFile, hookimpl\n"
        "@hookimpl\n"
        "def lowbit_published_results():\n"
        f"    yield PublishedFile(Path({str(tmp_path)!r}) / 'yours.json')\n"
    )
    own = Registry()
    own.load(str(plugin))
    with pytest.raises(LowbitError, match=r"its name must be mine\.json"):
        published_results(own, "yours", None)


def test_two_plugins_with_one_paper_are_an_error() -> None:
    def plugin() -> Any:
        implementation = hookimpl(lambda: [PublishedFile(Path("same.json"))])
        return type("Plugin", (), {"lowbit_published_results": staticmethod(implementation)})

    own = Registry()
    own.register(plugin(), PluginSource("first", "first"))
    with pytest.raises(LowbitError, match="two plugins register a paper named 'same'"):
        own.register(plugin(), PluginSource("second", "second"))


def test_cells_are_kept_by_task_metric_and_row(results: PublishedResults) -> None:
    cells = cells_for(results, "org/tiny")
    assert [cell.value for cell in only(cells, ["wikitext2_ppl"], [])] == [90.5]
    assert [cell.value for cell in only(cells, ["acc"], [])] == [60, 55]
    assert [cell.value for cell in only(cells, [], ["3 BITS"])] == [90.5]
    assert only(cells, [], []) == cells


@pytest.mark.parametrize(
    ("metrics", "rows", "expected"),
    [
        (["pica"], [], "--metric 'pica' is in no cell of this model; known: piqa, acc"),
        ([], ["GPTQ"], "--row 'GPTQ' is in no row of this model; rows: RTN, RTN 3 bits"),
        (["piqa"], ["3 bits"], "no cell of this model has both"),
    ],
)
def test_a_choice_that_leaves_nothing_is_refused(
    results: PublishedResults, metrics: list[str], rows: list[str], expected: str
) -> None:
    with pytest.raises(LowbitError, match=expected):
        only(cells_for(results, "org/tiny"), metrics, rows)


def test_every_file_that_ships_is_registered_by_its_plugin() -> None:
    registered = {entry.item.path.resolve() for entry in registry().table("paper").values()}
    plugins = Path(__file__).resolve().parents[2] / "plugins"
    assert set(plugins.glob("*/published/*.json")) <= registered


def test_the_example_in_the_documentation_is_a_file_of_targets(write: Write) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reproduce.md"
    example = page.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    assert len(read_published(write(example)).cells) == 2
