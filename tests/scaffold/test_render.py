"""The template, rendered into a folder."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from fresh_environment import ruff

from lowbit.errors import LowbitError
from lowbit.scaffold import plugin_names, render_plugin

FILES = [
    ".github/workflows/ci.yml",
    ".github/workflows/publish.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "lowbit_soft_sign/__init__.py",
    "lowbit_soft_sign/format.py",
    "lowbit_soft_sign/quantizer.py",
    "pyproject.toml",
    "tests/test_conformance.py",
]


def render(folder: Path, name: str = "soft-sign", author: str = "A. N. Other", about: str = "Signs") -> list[str]:
    return [path.as_posix() for path in render_plugin(plugin_names(name), folder, author, about)]


def test_it_writes_exactly_these_files_and_returns_them(tmp_path: Path) -> None:
    assert render(tmp_path / "a") == FILES
    found = sorted(
        path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()
    )
    assert found == FILES


def test_nothing_of_the_template_language_is_left(tmp_path: Path) -> None:
    for name in render(tmp_path / "a"):
        text = (tmp_path / "a" / name).read_text(encoding="utf-8")
        assert "{%" not in text
        assert "{{" not in text.replace("${{ matrix.python-version }}", "")
        assert text.endswith("\n") and not text.endswith("\n\n")


def test_metadata_says_who_and_what_whatever_the_characters(tmp_path: Path) -> None:
    author, about = "Zoë O'Hara <z@example.org>", 'Weights "rounded" \\ 2 & more'
    render(tmp_path / "a", author=author, about=about)
    project = tomllib.loads((tmp_path / "a" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "soft-sign"
    assert project["authors"] == [{"name": author}]
    assert project["description"] == about
    assert project["license"] == "Apache-2.0"
    assert project["entry-points"]["lowbit"] == {"soft-sign": "lowbit_soft_sign"}
    assert about in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


def test_the_workflows_run_what_the_readme_says(tmp_path: Path) -> None:
    render(tmp_path / "a")
    workflows = tmp_path / "a" / ".github" / "workflows"
    steps = yaml.safe_load((workflows / "ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]["steps"]
    commands = {step["run"] for step in steps if "run" in step}
    assert {"pytest", "lowbit plugins check soft-sign", "lowbit bench --method soft-sign --limit 20"} <= commands
    publish = yaml.safe_load((workflows / "publish.yml").read_text(encoding="utf-8"))["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}


@pytest.mark.parametrize("name", ["a", "soft-sign", "a" * 40, "quantizer", "x.y-z_w"])
def test_names_of_any_length_give_files_that_are_formatted_and_without_complaint(tmp_path: Path, name: str) -> None:
    render(tmp_path / "a", name)
    assert ruff(tmp_path / "a") == ""


def test_a_folder_that_is_empty_is_used_and_one_that_is_not_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert render(tmp_path / "empty") == FILES
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(LowbitError, match="full is not empty; choose another with --output"):
        render(tmp_path / "full")
    with pytest.raises(LowbitError, match=r"notes.txt is a file"):
        render(tmp_path / "full" / "notes.txt")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["", "  ", "two\nlines", "a\x00b"])
def test_author_and_description_are_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(LowbitError, match="the author must be one line"):
        render(tmp_path / "a", author=text)
    with pytest.raises(LowbitError, match="the description must be one line"):
        render(tmp_path / "a", about=text)
    assert list(tmp_path.iterdir()) == []


def test_without_copier_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copier", None)
    with pytest.raises(LowbitError, match=r"pip install 'lowbit\[plugin\]'"):
        render(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "copier.yml").write_text('_min_copier_version: "999.0"\n', encoding="utf-8")
    monkeypatch.setattr("lowbit.scaffold.render.TEMPLATE", broken)
    with pytest.raises(LowbitError, match="copier could not render the template"):
        render(tmp_path / "plugins" / "a")
    assert list((tmp_path / "plugins").iterdir()) == []
