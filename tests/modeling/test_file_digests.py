"""A checkpoint knows the bytes of its weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_models import ModelFolder, load_model, logits, quantize

import lowbit
from lowbit.errors import CheckpointError
from lowbit.modeling.file_digests import digests_of, require_unchanged
from lowbit.pipeline.inspection import inspect_checkpoint
from lowbit.pipeline.repack import repack


def section(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's quantization_config."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def flip(file: Path, place: int) -> None:
    """Change one bit of a file."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.fixture
def sharded(parent: ModelFolder, tmp_path: Path) -> Path:
    """A packed LLaMA in several files, to damage."""
    quantize(parent("llama"), tmp_path / "sharded", max_shard_size=10_000)
    return tmp_path / "sharded"


def test_the_configuration_names_every_file_with_its_sha256(sharded: Path) -> None:
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 1
    expected = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert section(sharded)["files_sha256"] == expected == digests_of(files)


@pytest.mark.parametrize(
    "read", [load_model, lowbit.load, inspect_checkpoint], ids=["from_pretrained", "load", "inspect"]
)
def test_a_flipped_bit_in_the_last_byte_of_a_shard_is_refused_by_its_name(sharded: Path, read: Any) -> None:
    last = sorted(sharded.glob("*.safetensors"))[-1]
    flip(last, -1)
    with pytest.raises(CheckpointError, match=f"{last.name}: not the bytes that were written"):
        read(sharded)


def test_a_damaged_checkpoint_is_not_repacked(sharded: Path, tmp_path: Path) -> None:
    flip(min(sharded.glob("*.safetensors")), -1)
    with pytest.raises(CheckpointError, match="not the bytes that were written"):
        repack(sharded, tmp_path / "repacked", "plain")
    assert not (tmp_path / "repacked").exists()


def test_repacked_files_have_digests_of_their_own(packed: ModelFolder, tmp_path: Path) -> None:
    repack(packed("llama"), tmp_path / "repacked", "plain")
    found = section(tmp_path / "repacked")["files_sha256"]
    assert found == digests_of((tmp_path / "repacked").glob("*.safetensors"))
    assert found != section(packed("llama"))["files_sha256"]
    inspect_checkpoint(tmp_path / "repacked")


def test_what_save_pretrained_writes_has_no_digests_and_loads(packed: ModelFolder, tmp_path: Path) -> None:
    model = load_model(packed("llama"))
    model.save_pretrained(tmp_path / "saved")
    assert "files_sha256" not in section(tmp_path / "saved")
    assert logits(load_model(tmp_path / "saved")).equal(logits(model))


def test_removing_the_key_allows_changed_weights(packed: ModelFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed("llama"), tmp_path / "copy"))
    flip(copy / "model.safetensors", -1)
    config = json.loads((copy / "config.json").read_text())
    del config["quantization_config"]["files_sha256"]
    (copy / "config.json").write_text(json.dumps(config))
    lowbit.load(copy)


@pytest.mark.parametrize("written", [[], 3, "x", {}, {"a.safetensors": None}, {"\x1b[2J": "0"}])
def test_digests_of_other_files_and_things_that_are_none_are_refused(tmp_path: Path, written: Any) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    with pytest.raises(CheckpointError) as caught:
        require_unchanged([file], written)
    assert "\x1b" not in str(caught.value)
    require_unchanged([file], {file.name: hashlib.sha256(b"weights").hexdigest()})
