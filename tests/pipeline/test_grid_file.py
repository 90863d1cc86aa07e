from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lowbit.errors import LowbitError
from lowbit.pipeline.grid_file import read_grid
from lowbit.recipe import Recipe, parse_override


def recipes(folder: Path, content: Any, *overrides: str, **flags: Any) -> list[Recipe]:
    path = folder / "grid.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_grid(path, flags, [parse_override(text) for text in overrides], ["wikitext"])


def test_a_grid_is_models_times_methods_times_seeds(tmp_path: Path) -> None:
    found = recipes(tmp_path, {"models": ["a", "b"], "methods": ["rtn", "gptq"], "seeds": [0, 7]})
    assert [(recipe.model.path, recipe.method, recipe.seed) for recipe in found] == [
        (model, method, seed) for model in ("a", "b") for method in ("rtn", "gptq") for seed in (0, 7)
    ]
    assert {tuple(recipe.eval.tasks) for recipe in found} == {("wikitext",)}


def test_what_is_laid_over_what(tmp_path: Path) -> None:
    content = {
        "methods": ["rtn", {"method": "gptq", "quantizer": {"group_size": 32}}],
        "recipe": {"quantizer": {"group_size": 128}, "eval": {"tasks": "piqa", "limit": 3}},
    }
    rtn, gptq = recipes(tmp_path, content)
    assert rtn.quantizer is not None and gptq.quantizer is not None
    assert (rtn.quantizer.options["group_size"], gptq.quantizer.options["group_size"]) == (128, 32)
    assert list(rtn.eval.tasks) == ["piqa"] and rtn.eval.limit == 3
    assert all(recipe.eval.limit == 5 for recipe in recipes(tmp_path, content, eval={"limit": 5}))
    rtn, gptq = recipes(tmp_path, content, "gptq:quantizer.group_size=16")
    assert rtn.quantizer is not None and gptq.quantizer is not None
    assert (rtn.quantizer.options["group_size"], gptq.quantizer.options["group_size"]) == (128, 16)


def test_cells_can_be_left_out(tmp_path: Path) -> None:
    content = {
        "models": ["a", "b"],
        "methods": ["rtn", "gptq"],
        "seeds": [0, 1],
        "exclude": [{"method": "rtn", "seed": 1}, {"model": "b", "method": "gptq"}],
    }
    left = [(recipe.model.path, recipe.method, recipe.seed) for recipe in recipes(tmp_path, content)]
    assert left == [("a", "rtn", 0), ("a", "gptq", 0), ("a", "gptq", 1), ("b", "rtn", 0)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"methods": []}, "methods"),
        ({"models": ["a"]}, "methods"),
        ({"methods": ["rtn"], "seed": [1]}, "did you mean seeds"),
        ({"methods": ["rtn", "rtn"]}, "twice"),
        ({"methods": ["no-such-method"]}, "no-such-method"),
        ({"methods": ["rtn"], "recipe": {"quantiser": {}}}, "quantiser"),
        ({"methods": [{"quantizer": {"group_size": 1}}]}, "a name, or a mapping with `method`"),
        ({"methods": [{"method": "rtn", "seed": 3}]}, "name it under `seeds`"),
        ({"methods": ["rtn"], "exclude": [{"method": "rtn"}]}, "excludes all"),
        ({"methods": ["rtn"] * 1000, "seeds": list(range(1000))}, "cells; at most"),
        ({"methods": ["rtn"], "seeds": [-1]}, "seed"),
        ("methods: [rtn", "no YAML"),
        ("[rtn]", "must be a mapping"),
    ],
)
def test_a_grid_that_does_not_hold_up_is_one_clear_error(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(LowbitError, match=words):
        recipes(tmp_path, content)


def test_resources_are_declared_and_change_no_identity(tmp_path: Path) -> None:
    few, many = ({"methods": ["rtn"], "recipe": {"resources": {"num_cpus": count}}} for count in (1, 64))
    (one,), (other,) = recipes(tmp_path, few), recipes(tmp_path, many)
    assert (one.resources.num_cpus, other.resources.num_cpus) == (1, 64)
    assert one.sha256() == other.sha256()
    assert one.checkpoint_part() == other.checkpoint_part()
