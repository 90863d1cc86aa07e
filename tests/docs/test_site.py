"""The documentation site builds strictly, without a network, and everything it links to is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docs.code_blocks import prose
from docs.tools_of_docs import load_tool

import lowbit

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "examples" not in path.relative_to(DOCS).parts)
COMMUNITY = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
LINK = re.compile(r"(?<!\\)!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(?P<text>.+?)(?: +\{[^}]*\})?$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as both mkdocs and GitHub make them."""
    found = set()
    for heading in HEADING.finditer(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"]).replace("`", "")
        slug = re.sub(r"[^\w\s-]", "", plain.lower()).strip()
        found |= {re.sub(r"[\s]+", "-", slug), re.sub(r"[-\s]+", "-", slug)}
    return found


@pytest.mark.parametrize("page", [*PAGES, *COMMUNITY], ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_relative_links_and_anchors_of_a_page_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(prose(page)):
        target = link["target"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}; {file.name} has no such heading"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly by a Python that reaches no network."""
    pytest.importorskip("mkdocs", reason="the documentation's tools are not installed: lowbit[docs]")
    folder = tmp_path_factory.mktemp("site")
    code = (
        "import socket, sys\n"
        "def refuse(*_):\n    raise OSError('the documentation is built without a network')\n"
        "socket.socket.connect = refuse\n"
        "from mkdocs.__main__ import cli\n"
        "cli(sys.argv[1:], prog_name='mkdocs')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    warned = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
    assert done.returncode == 0, "\n".join(warned)
    return folder


def test_the_site_builds_strictly_with_every_page_in_its_navigation(site: Path) -> None:
    for page in PAGES:
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file()
    # Names such as !!python/name: are read as plain values here.
    text = re.sub(r"!!python/name:\S+", "''", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = _leaves(yaml.safe_load(text)["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def _leaves(node: object) -> list[str]:
    if isinstance(node, str):
        return [node]
    items = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [leaf for item in items for leaf in _leaves(item)]


def test_no_page_of_the_site_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|iframe|link|source)\b[^>]*?\b(?:src|href)=[\"']?(https?:)?//", re.IGNORECASE)
    for page in site.rglob("*.html"):
        found = [match.group(0) for match in loads.finditer(page.read_text(encoding="utf-8"))]
        assert not [tag for tag in found if 'rel="canonical"' not in tag], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?https?:", style.read_text(encoding="utf-8")), style


def test_equations_are_text_in_the_page(site: Path) -> None:
    assert '<div class="equation">' in (site / "methods" / "dbllm.html").read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "api" / "lowbit.md").read_text(encoding="utf-8")
    assert set(lowbit.__all__) <= set(re.findall(r"^::: lowbit\.(?:[\w.]+\.)?(\w+)$", page, re.MULTILINE))


def test_every_public_name_of_the_conformance_kit_is_in_the_reference() -> None:
    testing = pytest.importorskip("lowbit.testing")
    page = (DOCS / "api" / "testing.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: lowbit\.testing\.(\w+)$", page, re.MULTILINE)) == set(testing.__all__)


def test_the_picture_of_rooms_is_drawn_from_the_plan_that_is_enforced() -> None:
    tool = load_tool("rooms_picture")
    drawn = (DOCS / "rooms.svg").read_text(encoding="utf-8")
    assert tool.picture(tool.read_plan()) == drawn, "run python docs/tools/rooms_picture.py"


def test_every_room_has_a_row_in_the_architecture() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for room in load_tool("rooms_picture").read_plan():
        assert f"`lowbit/{room}/`" in page or f"`lowbit/{room}.py`" in page, room
