"""Every registered method has a page, with the tables of switches that its code declares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs.tools_of_docs import load_tool

from lowbit.registry import registry

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = REPOSITORY / "docs" / "methods"
ALL_PAGES = sorted(PAGES.glob("*.md"))
SECTIONS = ("computes", "Switches", "Format and bits", "How well it does")


def shipped(kind: str) -> list[str]:
    return sorted(name for name, entry in registry().table(kind).items() if entry.source.distribution == "lowbit")


def titled() -> dict[str, Path]:
    """Return the page of each method that a title names."""
    titles = {path: path.read_text(encoding="utf-8").splitlines()[0] for path in ALL_PAGES}
    return {name: path for path, title in titles.items() for name in re.findall(r"`([\w-]+)`", title)}


def test_every_method_is_in_the_title_of_one_page() -> None:
    assert sorted(titled()) == shipped("method")


def test_every_quantizer_has_its_table_of_switches() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in ALL_PAGES)
    for quantizer in shipped("weight quantizer"):
        assert f"<!-- options: quantizer {quantizer} -->" in pages


@pytest.mark.parametrize("path", ALL_PAGES, ids=lambda path: path.stem)
def test_the_tables_of_switches_are_what_the_code_declares(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert load_tool("options_tables").with_tables(text) == text, "run python docs/tools/options_tables.py"


@pytest.mark.parametrize("path", [path for path in ALL_PAGES if path.stem != "none"], ids=lambda path: path.stem)
def test_a_page_says_what_is_computed_stored_and_reached(path: Path) -> None:
    text = path.read_text(encoding="utf-8").lower()
    for section in SECTIONS:
        assert section.lower() in text
    assert "```equation" in text


def test_the_index_links_every_page() -> None:
    index = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    for name, path in titled().items():
        assert f"`{name}`" in index
        assert f"methods/{path.name}" in index


def test_every_option_of_a_quantizer_or_loss_says_what_it_does() -> None:
    for kind in ("weight quantizer", "distillation loss"):
        for name in shipped(kind):
            for option, field in registry().table(kind)[name].item.Config.model_fields.items():
                assert field.description, f"{kind} {name}: option {option} has no description"
