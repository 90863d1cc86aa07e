"""Single tricks that mutation hardly finds: files beside those expected, names and counts without end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz.cases import Outcomes

from lowbit.distillation.training_store import TrainingStore
from lowbit.embedded import model_path
from lowbit.errors import LowbitError
from lowbit.modeling.sealing import read_tensors
from lowbit.models.checkpoint import model_hash
from lowbit.models.configuration import read_config_json, require_buildable
from lowbit.pipeline.grid_file import read_grid
from lowbit.pipeline.load import load_tokenizer
from lowbit.recipe.rules import Rule
from lowbit.results.layout import LONGEST_NAME, require_layout

SECRET = "nobody's business"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Copy the embedded model beside a file that is nobody's business."""
    (tmp_path / "secret.txt").write_text(SECRET)
    return Path(shutil.copytree(model_path(), tmp_path / "model"))


def refused(what: str, action: Callable[[], Any]) -> None:
    """Check that an action is refused soon, in one line."""
    outcomes = Outcomes(what, seconds=5)
    outcomes.check(what, action, lambda found: False)
    outcomes.finish(1)


def with_config(model: Path, **changes: Any) -> Path:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return model


def test_a_tokenizer_that_lies_elsewhere_is_refused(model: Path) -> None:
    outside = model.parent / "tokenizer.1.0.0.json"
    (model / "tokenizer.json").rename(outside)
    file = model / "tokenizer_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**settings, "fast_tokenizer_files": [f"../{outside.name}"]}))
    refused("elsewhere", lambda: load_tokenizer(model))


@pytest.mark.parametrize("whole", [False, True])
def test_chat_templates_that_lie_elsewhere_are_refused(model: Path, whole: bool) -> None:
    templates = model / "additional_chat_templates"
    if whole:
        templates.symlink_to(model.parent, target_is_directory=True)
    else:
        templates.mkdir()
        (templates / "a.jinja").symlink_to(model.parent / "secret.txt")
    refused("template", lambda: load_tokenizer(model))


@pytest.mark.parametrize("kind", ["pipe", "link", "endless"])
def test_weights_beside_the_weights_are_refused(model: Path, kind: str) -> None:
    file = model / "zzz.safetensors"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(model.parent / "secret.txt" if kind == "link" else "/dev/zero")
    refused(kind, lambda: model_hash(model))


def test_a_pipe_in_a_journal_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "block-00000.safetensors")
    refused("journal", lambda: read_tensors(tmp_path / "block-00000.safetensors", ""))
    store = TrainingStore(tmp_path)
    os.mkfifo(store.best_file(3))
    refused("training", lambda: store.best(3))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_blocks": 10**8},
        {"vision_config": {"depth": 10**7}},
        {"num_codebooks": 10**8},
        {"a\nlowbit: all good\nx_layers": 2**40},
    ],
)
def test_parts_without_end_are_refused_by_any_name(model: Path, changes: dict[str, Any]) -> None:
    with_config(model, **changes)
    refused("parts", lambda: require_buildable(model))
    with pytest.raises(LowbitError) as told:
        require_buildable(model)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"_attn_implementation": {"text_config": "a/b:c"}},
        {"text_config": {"_experts_implementation": "a/b"}},
    ],
)
def test_compiled_code_of_a_hub_is_refused(model: Path, changes: dict[str, Any]) -> None:
    read_config_json(with_config(model, attn_implementation="sdpa"))
    refused("kernels", lambda: read_config_json(with_config(model, **changes)))


@pytest.mark.parametrize(
    "pattern", ["(?:(?:(?:a{1000}){1000}){1000}){1000}", "a{0,99999}", "(a{,999}){999}", "a" * 2000]
)
def test_patterns_that_take_gigabytes_to_compile_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Rule(match=f"re:{pattern}", skip=True)
    assert Rule(match=r"re:layers\.\d{1,3}\..*", skip=True).matches("model.layers.12.mlp")


def test_thousands_of_exclusions_take_no_longer_than_a_few(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    seeds = 3000
    excluded = [{"seed": seed} for seed in range(seeds - 1)]
    path.write_text(yaml.safe_dump({"methods": ["rtn"], "seeds": list(range(seeds)), "exclude": excluded}))
    outcomes = Outcomes("grid", seconds=8)
    outcomes.check("grid", lambda: read_grid(path, {}), lambda found: [recipe.seed for recipe in found] == [seeds - 1])
    outcomes.finish(0)


@pytest.mark.parametrize(
    "content",
    [
        {"lowbit": {"method": "e" * (LONGEST_NAME + 1)}},
        {"lowbit": {"parent": {"name": "e" * (LONGEST_NAME + 1)}}},
        {"results": {"e" * (LONGEST_NAME + 1): {}}},
        {"results": {"quiz": {"e" * (LONGEST_NAME + 1): 1.0}}},
        {"lowbit": {"bits": {"items": {"e" * (LONGEST_NAME + 1): 1}}}},
        {"lowbit": {"bits": {"items": {"codes": 1e39}}}},
        {"lowbit": {"bits": {"nominal_bits": 1e308}}},
        {"lowbit": {"bits": {"nominal_bits": -1}}},
    ],
)
def test_names_and_sizes_that_nothing_can_draw_are_refused(content: dict[str, Any]) -> None:
    refused("layout", lambda: require_layout({"results": {}, **content}))
