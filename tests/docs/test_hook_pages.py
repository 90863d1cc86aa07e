"""Every hook has a page with its exact signature and a complete example, and a test that implements it."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from docs.code_blocks import CodeBlock, code_blocks, prose

from lowbit.hookspecs import HOOK_GROUPS
from lowbit.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = REPOSITORY / "docs" / "hooks"
HOOKS = {
    name: (group, hook) for group in HOOK_GROUPS for name, hook in vars(group).items() if name.startswith("lowbit_")
}
SECTIONS = ["When it is called", "Arguments", "Example", "What it returns", "When it fails", "Docstring"]


def page_of(name: str) -> Path:
    return PAGES / f"{name}.md"


def signature_of(name: str) -> str:
    """Return a hook's signature as a reader writes it."""
    signature = inspect.signature(HOOKS[name][1])
    arguments = ", ".join(str(value) for key, value in signature.parameters.items() if key != "self")
    return re.sub(r"'", "", f"{name}({arguments}) -> {signature.return_annotation}")


def example_of(name: str) -> CodeBlock:
    return next(block for block in code_blocks(page_of(name)) if "@hookimpl" in block.text)


def test_every_page_is_of_a_hook_and_every_hook_has_one() -> None:
    assert {path.stem for path in PAGES.glob("lowbit_*.md")} == set(HOOKS)


@pytest.mark.parametrize("name", list(HOOKS))
def test_a_page_begins_with_the_exact_signature(name: str) -> None:
    first = code_blocks(page_of(name))[0]
    assert " ".join(first.text.split()).replace("( ", "(").replace(", )", ")") == signature_of(name)


@pytest.mark.parametrize("name", list(HOOKS))
def test_a_page_says_when_with_what_and_what_happens_on_errors(name: str) -> None:
    text = page_of(name).read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", prose(page_of(name)), re.MULTILINE) == SECTIONS
    assert f"::: lowbit.hookspecs.{HOOKS[name][0].__name__}.{name}\n" in text
    arguments = set(inspect.signature(HOOKS[name][1]).parameters) - {"self"}
    assert all(f"| `{argument}` |" in text for argument in arguments)


@pytest.mark.parametrize("name", list(HOOKS))
def test_the_example_of_a_page_is_a_plugin_that_loads(name: str, tmp_path: Path) -> None:
    block = example_of(name)
    functions = [node.name for node in ast.parse(block.text).body if isinstance(node, ast.FunctionDef)]
    assert name in functions
    file = tmp_path / f"example_of_{name}.py"
    file.write_text(block.text)
    made = Registry()
    made.load(str(file))
    assert [plugin.plugin for plugin in made.plugins] == [file.stem]


@pytest.mark.parametrize("name", list(HOOKS))
def test_some_test_implements_the_hook(name: str) -> None:
    implementation = re.compile(rf"def {name}\(")
    files = [path for path in (REPOSITORY / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert [path for path in files if implementation.search(path.read_text(encoding="utf-8"))]


def test_the_index_lists_every_hook() -> None:
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\[`(lowbit_\w+)`\]\(\1\.md\)", index)) == set(HOOKS)
