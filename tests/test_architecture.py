"""The plan of the house, held by tests: who imports whom, and what the core never names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lowbit
from lowbit.registry import KINDS, registry

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = REPOSITORY / "lowbit"
PLUGINS = REPOSITORY / "plugins"

BASE = {"errors", "untrusted", "documents", "contracts"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "untrusted": set(),
    "documents": {"errors", "untrusted"},
    "durable": {"errors"},
    "preemption": set(),
    "memory_errors": {"errors"},
    "contracts": set(),
    "embedded": set(),
    "hub": {"errors", "documents"},
    "hookspecs": {"contracts"},
    "observers": {"errors", "hookspecs"},
    "registry": BASE | {"hookspecs", "observers"},
    "tracking": BASE | {"hookspecs"},
    "recipe": BASE | {"registry"},
    "models": BASE,
    "calibration": BASE | {"models", "hookspecs", "hub"},
    "quantization": BASE | {"calibration", "models"},
    "distillation": BASE | {"durable", "preemption", "models", "calibration", "quantization", "hookspecs"},
    "packing": BASE | {"hookspecs"},
    "modeling": BASE | {"durable", "packing", "models", "hookspecs", "registry"},
    "evaluation": BASE | {"durable", "embedded", "recipe", "modeling", "hub"},
    "results": {"errors", "untrusted", "durable"},
    "report": {"errors", "untrusted", "durable", "results"},
    "scaffold": {"errors"},
    "pipeline": BASE
    | {
        "durable",
        "memory_errors",
        "embedded",
        "hub",
        "hookspecs",
        "registry",
        "recipe",
        "models",
        "calibration",
        "quantization",
        "distillation",
        "packing",
    }
    | {"modeling", "evaluation", "results"},
    "testing": BASE
    | {"durable", "hookspecs", "registry", "recipe", "models", "calibration", "quantization", "distillation"}
    | {"packing", "modeling", "results", "pipeline"},
    "progress": {"contracts", "hookspecs", "results", "pipeline"},
    "engines": {"errors", "durable", "preemption", "hookspecs", "registry", "recipe"}
    | {"embedded", "results", "pipeline", "progress"},
    "cli": BASE
    | {"progress", "engines", "preemption", "memory_errors"}
    | {"embedded", "hub", "hookspecs", "registry", "recipe", "models", "calibration", "quantization", "distillation"}
    | {"packing", "modeling", "evaluation", "results", "report", "scaffold", "pipeline", "testing", "durable"},
    "transformers_hook": {"modeling"},
}
"""What each room may import besides itself; an entry names only rooms above it."""


def sources(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
    assert found
    return found


def room_of(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every import of a file: the module and, for `from` imports, the names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or "", tuple(alias.name for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    rooms: set[str] = set()
    for module, names in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "lowbit":
            rooms.update(parts[1:2] or names)
    return rooms


def test_the_rooms_are_listed_in_an_order_without_cycles() -> None:
    seen: set[str] = set()
    for room, allowed in ROOMS.items():
        assert allowed <= seen, f"{room} imports {allowed - seen} before they are listed"
        seen.add(room)


def test_every_room_is_listed() -> None:
    present = {room_of(path) for path in sources(CORE)} - {"__init__"}
    assert present <= ROOMS.keys()


@pytest.mark.parametrize("room", list(ROOMS))
def test_a_room_imports_only_what_the_plan_allows(room: str) -> None:
    wrong = {
        str(path.relative_to(REPOSITORY)): sorted(rooms)
        for path in sources(CORE)
        if room_of(path) == room and (rooms := imported_rooms(path) - ROOMS[room] - {room})
    }
    assert wrong == {}


def test_the_engine_knows_neither_packing_nor_the_registry() -> None:
    for path in sources(CORE / "quantization"):
        assert not imported_rooms(path) & {"packing", "registry", "modeling", "recipe"}


def test_the_core_imports_no_plugin() -> None:
    for path in sources(CORE):
        assert not [module for module, _ in imported_modules(path) if module.startswith("lowbit_")], path


@pytest.mark.parametrize("path", sources(PLUGINS), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_a_plugin_uses_only_public_names_of_lowbit_and_no_other_plugin(path: Path) -> None:
    own = path.relative_to(PLUGINS).parts[0]
    for module, names in imported_modules(path):
        root = module.split(".")[0]
        assert not root.startswith("lowbit_") or root == own, f"imports {module}"
        if root == "lowbit":
            assert module == "lowbit", f"imports {module}; take the name from lowbit itself"
            assert set(names) <= set(lowbit.__all__)


def test_the_core_names_no_method_of_a_paper() -> None:
    names = re.compile(r"db-?llm|bi-?llm|pb-?llm|arb-?llm", re.IGNORECASE)
    found = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for path in sources(CORE)
        for line in path.read_text(encoding="utf-8").splitlines()
        if names.search(line)
    ]
    assert found == []


def test_no_string_in_the_core_is_a_name_that_a_plugin_registers() -> None:
    from_plugins = {
        name
        for kind in KINDS
        for name, entry in registry().table(kind).items()
        if entry.source.plugin in {"baselines", "dbllm"} and name != "none"
    }
    assert from_plugins
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.value!r}"
        for path in sources(CORE)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in from_plugins
    ]
    assert found == []


@pytest.mark.parametrize("module", ["lowbit", "lowbit.registry", "lowbit.hookspecs", "lowbit.errors"])
def test_a_light_module_loads_neither_torch_nor_transformers(module: str) -> None:
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets'}"
    code = f"import sys, {module}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves_to_what_its_home_holds() -> None:
    assert list(lowbit.__all__) == sorted(lowbit._HOME_OF)
    for name in lowbit.__all__:
        assert getattr(lowbit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lowbit.nothing  # noqa: B018


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((CORE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(lowbit.__all__)
