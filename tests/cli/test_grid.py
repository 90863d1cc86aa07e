from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from lowbit.cli.bench import command
from lowbit.cli.grid_view import GridView


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), standalone_mode=False)


@pytest.fixture
def grid(tmp_path: Path) -> str:
    path = tmp_path / "grid.yaml"
    path.write_text("methods: [rtn, gptq]\nseeds: [0, 1]\n")
    return str(path)


def test_a_grid_is_shown_as_its_recipes(grid: str) -> None:
    shown = run("--grid", grid, "--show_config", "--limit", "3").output
    assert shown.count("method: rtn") == shown.count("method: gptq") == 2
    assert shown.count("limit: 3") == 4


@pytest.mark.parametrize("option", [("--method", "rtn"), ("--model", "m"), ("--seed", "3"), ("--config", "c.yaml")])
def test_what_a_grid_lists_is_not_given_beside_it(grid: str, option: tuple[str, str]) -> None:
    assert f"leave out {option[0]}" in str(run("--grid", grid, *option).exception)


def test_an_address_is_for_ray_only() -> None:
    assert "--ray_address is for --engine ray" in str(run("--ray_address", "127.0.0.1:1").exception)


def test_one_view_shows_all_cells_at_work() -> None:
    lines: list[str] = []
    now = [0.0]
    view = GridView(lines.append, clock=lambda: now[0])
    view.planned({0: "parent on m", 1: "rtn on m, seed 0", 2: "[b]gptq[/b] on m, seed 0"}, finished=4)
    assert lines == ["grid: 3 cells to run, 4 were finished before"]
    view.reported(0, {"line": "evaluating"})
    assert lines[-1] == "[0] parent on m: evaluating"
    now[0] = 10.0
    view.ended(0, None)
    assert lines[-1] == "[0] parent on m: done (1 of 3 cells, 10.0 s, 20.0 s left)"
    view.reported(2, {"counters": [("blocks", 3, 8)], "memory": "memory 1.00 GB", "title": "gptq"})
    console = Console(width=140, record=True)
    console.print(view.render())
    shown = console.export_text()
    assert "[b]gptq[/b] on m, seed 0" in shown and "3 of 8" in shown and "memory 1.00 GB" in shown
    view.ended(1, "the disk is full")
    assert "failed: the disk is full (2 of 3 cells, 1 failed" in lines[-1]
    view.reported(1, {"line": "late"})
    assert "late" not in lines[-1]
