"""A parent that is damaged or of the wrong kind gives one clear error, and nothing half-written stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import ModelFolder, load_model, make_config, make_parent, quantize
from torch import Tensor

from lowbit.errors import CheckpointError, LowbitError

UP = "model.layers.1.mlp.up_proj.weight"
Damage = Callable[[Path], object]


@pytest.fixture
def copy(parent: ModelFolder, tmp_path: Path) -> Path:
    """A LLaMA to damage."""
    return Path(shutil.copytree(parent("llama"), tmp_path / "parent"))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a single-file model."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def set_value(folder: Path, name: str, value: float) -> None:
    """Put one bad number into a tensor."""
    edit_tensors(folder, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "NaN weight": (lambda f: set_value(f, UP, float("nan")), "model.layers.1.mlp.up_proj has 1 values"),
    "infinite weight": (lambda f: set_value(f, UP, float("inf")), "model.layers.1.mlp.up_proj has 1 values"),
    "NaN norm": (lambda f: set_value(f, "model.layers.1.input_layernorm.weight", float("nan")), "input_layernorm"),
    "NaN embedding": (lambda f: set_value(f, "model.embed_tokens.weight", float("nan")), "embed_tokens"),
    "missing matrix": (lambda f: edit_tensors(f, lambda t: t.pop(UP)), UP),
    "missing norm": (lambda f: edit_tensors(f, lambda t: t.pop("model.norm.weight")), "model.norm.weight"),
    "missing head": (lambda f: edit_tensors(f, lambda t: t.pop("lm_head.weight")), "lm_head.weight"),
    "missing embedding": (lambda f: edit_tensors(f, lambda t: t.pop("model.embed_tokens.weight")), "embed_tokens"),
    "wrong shape": (lambda f: edit_tensors(f, lambda t: t.update({UP: torch.zeros(47, 32)})), UP),
    "wrong head shape": (lambda f: edit_tensors(f, lambda t: t.update({"lm_head.weight": torch.ones(9, 32)})), "head"),
    "integer weight": (lambda f: edit_tensors(f, lambda t: t.update({UP: torch.zeros(48, 32).char()})), UP),
    "truncated": (lambda f: truncate(f / "model.safetensors", 0.5), "truncated or damaged"),
    "empty file": (lambda f: truncate(f / "model.safetensors", 0.0), "truncated or damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors only"),
    "index is no JSON": (lambda f: write_index(f, "{"), "is no index"),
    "index is a list": (lambda f: write_index(f, "[]"), "is no index"),
    "index maps to numbers": (lambda f: write_index(f, '{"weight_map": {"a": 1}}'), "must map tensor names"),
    "index points outside": (lambda f: write_index(f, '{"weight_map": {"a": "../b"}}'), "outside its folder"),
    "index of an absent file": (lambda f: write_index(f, '{"weight_map": {"a": "b.safetensors"}}'), "missing"),
    "index of an absent tensor": (
        lambda f: write_index(f, '{"weight_map": {"a": "model.safetensors"}}'), "disagrees with the files"
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "no readable model configuration"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "no readable model configuration"),
    "unknown type": (lambda f: edit_config(f, model_type="acme"), "no readable model configuration"),
    "no type": (lambda f: edit_config(f, model_type=None), "no readable model configuration"),
    "negative width": (lambda f: edit_config(f, hidden_size=-4), "configuration"),
    "width of another kind": (lambda f: edit_config(f, hidden_size="wide"), "configuration"),
    "no causal model": (lambda f: edit_config(f, model_type="clip_vision_model"), "no causal language model"),
    "no tokenizer": (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "tokenizer"),
}  # fmt: skip


def truncate(file: Path, share: float) -> None:
    """Cut a file off."""
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def write_index(folder: Path, content: str) -> None:
    """Put an index beside the weights."""
    (folder / "model.safetensors.index.json").write_text(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_parent_is_refused_and_leaves_nothing_half_written(damage: str, copy: Path, tmp_path: Path) -> None:
    apply, message = DAMAGES[damage]
    apply(copy)
    output = tmp_path / "made" / "out"
    with pytest.raises(LowbitError) as caught:
        quantize(copy, output)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not output.exists()
    assert not list((tmp_path / "made").rglob("*.tmp"))


def test_a_quantized_parent_is_refused(packed: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="quantized already"):
        quantize(packed("llama"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/no/such/folder", "a/b/c"])
def test_a_folder_that_does_not_exist_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="does not exist"):
        quantize(Path(path), tmp_path / "out")


def test_a_file_in_the_place_of_the_output_is_kept(parent: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(LowbitError, match="choose another output"):
        quantize(parent("llama"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_sharded_parent_makes_the_same_tensors_as_a_single_file(
    packed: ModelFolder, parent: ModelFolder, tmp_path: Path
) -> None:
    load_model(parent("llama")).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for file in parent("llama").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "sharded")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    quantize(tmp_path / "sharded", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (packed("llama") / "model.safetensors").read_bytes()


def test_tensors_keep_the_dtype_of_the_parent(tmp_path: Path) -> None:
    folder = make_parent(tmp_path / "parent", make_config("qwen2"))
    edit_tensors(folder, lambda t: t.update({name: value.bfloat16() for name, value in t.items()}))
    quantize(folder, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kept = {
        n: t for n, t in tensors.items() if n.endswith(("layernorm.weight", "bias", "norm.weight", "tokens.weight"))
    }
    assert len(kept) > 10
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    original = load_file(folder / "model.safetensors")
    assert all(torch.equal(original[name], tensor) for name, tensor in kept.items())


def test_damaged_files_are_checkpoint_errors(copy: Path, tmp_path: Path) -> None:
    truncate(copy / "model.safetensors", 0.5)
    with pytest.raises(CheckpointError):
        quantize(copy, tmp_path / "out")
