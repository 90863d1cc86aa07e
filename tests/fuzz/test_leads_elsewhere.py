"""A model's folder is read from its own files, whole, and a journal only as it was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz.cases import Outcomes, generator, mutated_bytes, mutated_trees, number
from safetensors.torch import load_file, save_file
from small_models import ModelFolder, make_recipe

from lowbit.errors import LowbitError
from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.load import load
from lowbit.pipeline.make_checkpoint import journal_path
from lowbit.pipeline.quantize import quantize_to
from lowbit.recipe.rules import Rule


@pytest.fixture
def copied(parent: ModelFolder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parent("llama"), tmp_path / "model"))


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize("name", ["other.safetensors", "../model/other.safetensors", "pytorch_model.bin", 3])
@pytest.mark.parametrize("read", [load, StreamedModel])
def test_a_configuration_names_no_other_weights(copied: Path, name: object, read: Callable[[Path], Any]) -> None:
    zeros = {key: torch.zeros_like(tensor) for key, tensor in load_file(copied / "model.safetensors").items()}
    save_file(zeros, copied / "other.safetensors", metadata={"format": "pt"})
    change_config(copied, transformers_weights=name)
    with pytest.raises(LowbitError, match="transformers_weights"):
        read(copied)


def test_an_adapter_leads_to_no_other_model(copied: Path, parent: ModelFolder) -> None:
    base = {"base_model_name_or_path": str(parent("gpt2")), "peft_type": "LORA"}
    (copied / "adapter_config.json").write_text(json.dumps(base), encoding="utf-8")
    with pytest.raises(LowbitError, match="adapter"):
        load(copied)


def test_a_model_shallower_than_its_files_is_refused(copied: Path) -> None:
    change_config(copied, num_hidden_layers=2)
    with pytest.raises(LowbitError, match="no place for"):
        load(copied)


@pytest.mark.parametrize("read", [load, StreamedModel])
def test_labels_without_end_are_refused_at_once(copied: Path, read: Callable[[Path], Any]) -> None:
    change_config(copied, num_labels=10**9)
    with pytest.raises(LowbitError, match="num_labels"):
        read(copied)


@pytest.mark.parametrize("pattern", [r"re:(a|aa)+$", r"re:(.*?a){30}P"])
def test_a_pattern_that_takes_years_is_refused_within_seconds(pattern: str) -> None:
    outcomes = Outcomes("patterns")
    outcomes.check(pattern, lambda: Rule(match=pattern, skip=True).matches("a" * 60 + "b"))
    outcomes.finish()


class Stopped(Exception):
    """Ends a run in the middle."""


class Events:
    """Hears everything; ends the run after its second block if asked."""

    def __init__(self, stop: bool) -> None:
        self._stop = stop

    def __getattr__(self, name: str) -> Callable[..., None]:
        def hear(*arguments: Any, **_: Any) -> None:
            if self._stop and name == "block_quantized" and arguments[0].index == 1:
                raise Stopped

        return hear


def tensors_of(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("*.safetensors"))]


def test_a_damaged_journal_is_refused_or_ends_in_the_same_bytes(parent: ModelFolder, tmp_path: Path) -> None:
    recipe = make_recipe(parent("llama"))
    quantize_to(recipe, tmp_path / "whole", Events(stop=False))
    wanted = tensors_of(tmp_path / "whole")
    out, kept = tmp_path / "out", tmp_path / "kept"
    with pytest.raises(Stopped):
        quantize_to(recipe, out, Events(stop=True))
    journal_path(out).rename(kept)
    rng = generator("journal")
    outcomes = Outcomes("journal")
    for name in ("block-00000.safetensors", "block-00001.json", "signature.json"):
        data = (kept / name).read_bytes()
        cases = list(mutated_bytes(data, rng, number(25)))
        if name.endswith(".json"):
            trees = mutated_trees(json.loads(data), rng, number(25))
            cases += [(text, json.dumps(tree).encode("utf-8", "surrogatepass")) for text, tree in trees]
        for description, damaged in cases:
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(journal_path(out), ignore_errors=True)
            shutil.copytree(kept, journal_path(out))
            (journal_path(out) / name).write_bytes(damaged)

            def continue_run() -> list[bytes]:
                quantize_to(recipe, out, Events(stop=False))
                return tensors_of(out)

            outcomes.check(f"{name}: {description}", continue_run, lambda found: found == wanted)
    outcomes.finish(refusals=number(50))


def test_a_journal_without_its_signature_is_not_continued(parent: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        quantize_to(make_recipe(parent("llama")), tmp_path / "out", Events(stop=True))
    (journal_path(tmp_path / "out") / "signature.json").unlink()
    with pytest.raises(LowbitError, match="no signature"):
        quantize_to(make_recipe(parent("llama"), seed=7), tmp_path / "out", Events(stop=False))
