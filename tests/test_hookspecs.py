"""The page that plugin authors read: every hook is explained by an example that would work."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

from lowbit.hookspecs import HOOK_GROUPS, RegistrationHooks
from lowbit.registry import KINDS

HOOKS = {name: hook for group in HOOK_GROUPS for name, hook in vars(group).items() if name.startswith("lowbit_")}


def example(name: str) -> str:
    documentation = inspect.getdoc(HOOKS[name]) or ""
    assert "Example:" in documentation
    lines = documentation.split("Example:", 1)[1].splitlines()[1:]
    body = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        body.append(line)
    return textwrap.dedent("\n".join(body))


@pytest.mark.parametrize("name", list(HOOKS))
def test_every_hook_shows_an_implementation_that_python_reads(name: str) -> None:
    [function] = ast.parse(example(name)).body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == name
    assert [ast.unparse(decorator) for decorator in function.decorator_list] == ["hookimpl"]
    accepted = set(inspect.signature(HOOKS[name]).parameters) - {"self"}
    assert {argument.arg for argument in function.args.args} == accepted


@pytest.mark.parametrize("name", list(HOOKS))
def test_every_hook_says_in_one_sentence_what_it_is_for(name: str) -> None:
    first = (inspect.getdoc(HOOKS[name]) or "").splitlines()[0]
    assert first.endswith(".")


def test_every_registration_hook_fills_a_table() -> None:
    hooks = {name for name in vars(RegistrationHooks) if name.startswith("lowbit_")}
    assert hooks == {hook for hook, _ in KINDS.values()}
