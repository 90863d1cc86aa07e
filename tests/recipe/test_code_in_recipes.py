from __future__ import annotations

from typing import Any

import pytest

from lowbit.errors import LowbitError
from lowbit.recipe import resolve_recipe
from lowbit.registry import registry

ASKS = [
    ("model", "trust_remote_code", True),
    ("eval", "confirm_run_unsafe_code", True),
    ("eval", "include_path", "tasks"),
    ("eval", "tasks", ["piqa", "./mine.yaml"]),
]


@pytest.mark.parametrize(("section", "key", "value"), ASKS)
def test_a_recipe_file_alone_cannot_ask_for_code_to_run(section: str, key: str, value: Any) -> None:
    file = {"method": "rtn", section: {key: value}}
    with pytest.raises(LowbitError, match=rf"sets {section}\.{key}, which runs code .* give --{key}"):
        resolve_recipe(registry(), None, file)
    asked = resolve_recipe(registry(), None, file, {section: {key: value}})
    assert asked.to_dict()[section][key] == value


def test_what_runs_no_code_needs_no_word() -> None:
    file = {"method": "rtn", "model": {"trust_remote_code": False}, "eval": {"tasks": "piqa,wikitext"}}
    assert resolve_recipe(registry(), None, file).eval.tasks
