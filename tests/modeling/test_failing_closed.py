"""Damaged, newer and foreign checkpoints are refused in fresh processes, never loaded as noise."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_models import FUSED_EXPERTS, ModelFolder, load_model, make_config, make_parent, quantize

from lowbit.errors import LowbitError

LOAD_EACH = """
import json, sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        print("loaded")
    except Exception as error:
        print(type(error).__name__)
"""


def load_in_fresh_process(*folders: Path, before: str = "import lowbit") -> list[str]:
    """Load checkpoints in one fresh process; return for each the kind of error, or `loaded`."""
    code = [sys.executable, "-c", before + LOAD_EACH, *map(str, folders)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    return done.stdout.split()


# The last two are transformers' own, for an index of JSON that is no index at all.
REFUSALS = (LowbitError, OSError, ValueError, RuntimeError, SafetensorError, TypeError, AttributeError)


def refusal(folder: Path) -> str:
    """Try to load a checkpoint; return the error that it was refused with."""
    with pytest.raises(REFUSALS) as caught:
        load_model(folder)
    return f"{caught.type.__name__}: {caught.value}"


@pytest.fixture
def copy(packed: ModelFolder, tmp_path: Path) -> Path:
    """A packed LLaMA to damage."""
    return Path(shutil.copytree(packed("llama"), tmp_path / "copy"))


@pytest.fixture
def sharded(parent: ModelFolder, tmp_path: Path) -> Path:
    """A packed LLaMA in several files, to damage."""
    quantize(parent("llama"), tmp_path / "sharded", max_shard_size=10_000)
    return tmp_path / "sharded"


def edit_config(folder: Path, **changes: Any) -> None:
    """Change top-level keys of a checkpoint's quantization_config."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"].update(changes)
    file.write_text(json.dumps(config))


def edit_entries(folder: Path, **changes: Any) -> None:
    """Change every entry of a checkpoint's quantization_config.modules."""
    modules = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    edit_config(folder, modules={name: {**entry, **changes} for name, entry in modules.items()})


def drop_tensor(folder: Path, name: str) -> None:
    """Remove one tensor from a single-file checkpoint, and the digests that transformers would not write."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, files_sha256=None)


@pytest.mark.parametrize(
    "before",
    [
        "import lowbit",
        "import transformers.modeling_utils, lowbit",
        "import importlib, lowbit, transformers.modeling_utils; importlib.reload(lowbit)",
    ],
)
def test_lowbit_registers_before_and_after_transformers_is_imported(before: str, packed: ModelFolder) -> None:
    assert load_in_fresh_process(packed("llama"), before=before) == ["loaded"]


def test_importing_lowbit_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, lowbit; print(sorted({'torch', 'transformers', 'numpy', 'lm_eval'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loads_without_lowbit_fail_on_the_sentinels(parent: ModelFolder, packed: ModelFolder, tmp_path: Path) -> None:
    folders = [packed("llama"), packed("gpt2")]
    if FUSED_EXPERTS:
        folders += [quantize_experts_only(parent(name), tmp_path / name) for name in MIXTURES]
    results = load_in_fresh_process(*folders, before="")
    assert len(results) == len(folders)
    assert "loaded" not in results


MIXTURES = ("mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3")


def quantize_experts_only(parent: Path, output: Path) -> Path:
    """Quantize nothing but fused experts."""
    rules = [{"match": r"re:.*\.(self_attn|shared_experts)\..*", "skip": True}]
    if "deepseek" in parent.name:
        rules.append({"match": r"re:.*\.layers\.0\.mlp\..*", "skip": True})
    folder = quantize(parent, output, rules=rules).checkpoint
    modules = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    assert all(entry["fused"] for entry in modules.values())
    assert load_model(folder) is not None
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_proj.tiles",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_a_missing_tensor_is_refused_by_name(name: str, copy: Path) -> None:
    drop_tensor(copy, name)
    error = refusal(copy)
    assert "CheckpointError" in error
    assert name in error


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("opt", "model.decoder.layers.1.self_attn.q_proj.bias"),
        ("llama-tied", "model.embed_tokens.weight"),
        ("deepseek-v3", "model.layers.1.mlp.gate.e_score_correction_bias"),
        ("deepseek-v3", "model.layers.1.mlp.gate.weight"),
    ],
)
def test_a_missing_tensor_of_another_architecture_is_refused(
    architecture: str, name: str, packed: ModelFolder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(packed(architecture), tmp_path / "copy"))
    drop_tensor(folder, name)
    error = refusal(folder)
    assert "CheckpointError" in error
    assert name in error


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("parameters", "group_size", 0),
        ("parameters", "group_size", -2),
        ("parameters", "group_size", "x"),
        ("parameters", "group_size", 2**40),
        ("sizes", "groups", 3),
    ],
)
def test_a_declaration_that_does_not_hold_together_is_refused(part: str, key: str, value: Any, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    name = "model.layers.1.self_attn.q_proj"
    config["quantization_config"]["modules"][name][part][key] = value
    (copy / "config.json").write_text(json.dumps(config))
    error = refusal(copy)
    assert "CheckpointError" in error
    assert name in error


def test_a_tensor_of_another_dtype_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.tiles"
    tensors[name] = tensors[name].long()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    error = refusal(copy)
    assert "CheckpointError" in error
    assert name in error


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    error = refusal(copy)
    assert "Error" in error
    assert any(
        word in error.lower() for word in ("header", "truncated", "damaged", "metadata", "incomplete", "invalid")
    )


def test_a_missing_shard_is_refused(sharded: Path) -> None:
    assert load_model(sharded) is not None
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink()
    assert victim.name in refusal(sharded)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": 3}'])
def test_a_corrupted_index_is_refused(content: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "Error" in refusal(sharded)


def test_an_index_that_lost_entries_is_refused(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    lost = sorted(set(index["weight_map"].values()))[-1]
    index["weight_map"] = {key: name for key, name in index["weight_map"].items() if name != lost}
    file.write_text(json.dumps(index))
    assert "CheckpointError" in refusal(sharded)


@pytest.mark.parametrize("version", [2, "new"])
def test_a_newer_checkpoint_version_is_refused(version: object, copy: Path) -> None:
    edit_config(copy, checkpoint_version=version)
    error = refusal(copy)
    assert "CheckpointError" in error
    assert "upgrade lowbit" in error


def test_a_newer_format_version_is_refused(copy: Path) -> None:
    edit_entries(copy, format_version=99)
    error = refusal(copy)
    assert "CheckpointError" in error
    assert "dual-binary version 99" in error


@pytest.mark.parametrize("key", ["format", "packer"])
def test_a_missing_plugin_is_named(key: str, copy: Path) -> None:
    edit_entries(copy, plugin="acme-quantizers", **{key: "acme"})
    error = refusal(copy)
    assert "CheckpointError" in error
    assert "acme-quantizers" in error


@pytest.mark.parametrize("modules", [{}, None, [], {"model.layers.0": {}}, {"model.layers.0.mlp.up_proj": 3}])
def test_a_configuration_without_sensible_modules_is_refused(modules: object, copy: Path) -> None:
    edit_config(copy, modules=modules)
    assert "CheckpointError" in refusal(copy)


def test_an_entry_for_a_layer_that_does_not_exist_is_refused(copy: Path) -> None:
    modules = json.loads((copy / "config.json").read_text())["quantization_config"]["modules"]
    modules["model.layers.7.mlp.up_proj"] = modules["model.layers.0.mlp.up_proj"]
    edit_config(copy, modules=modules)
    error = refusal(copy)
    assert "CheckpointError" in error
    assert "model.layers.7.mlp.up_proj" in error


def test_an_entry_that_was_lost_is_refused(copy: Path) -> None:
    modules = json.loads((copy / "config.json").read_text())["quantization_config"]["modules"]
    del modules["model.layers.0.mlp.up_proj"]
    edit_config(copy, modules=modules)
    assert "Error" in refusal(copy)


def test_entries_of_another_shape_are_refused(copy: Path, tmp_path: Path) -> None:
    config = make_config("llama")
    config.intermediate_size = 64
    other = make_parent(tmp_path / "wider", config)
    written = json.loads((other / "config.json").read_text())
    written["quantization_config"] = json.loads((copy / "config.json").read_text())["quantization_config"]
    (copy / "config.json").write_text(json.dumps(written))
    assert "CheckpointError" in refusal(copy)
