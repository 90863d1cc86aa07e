"""Checkpoints written again in another layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import ModelFolder, load_model, logits

import lowbit
from lowbit.errors import LowbitError
from lowbit.pipeline.repack import repack


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, parent: ModelFolder) -> Path:
    folder = tmp_path_factory.mktemp("repack") / "original"
    lowbit.quantize(str(parent("llama")), "dbllm-ptq", folder, max_shard_size=30000)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def without_history(files: dict[str, bytes]) -> dict[str, bytes]:
    provenance = json.loads(files.pop("lowbit_provenance.json"))
    provenance.pop("repacked", None)
    return {**files, "lowbit_provenance.json": json.dumps(provenance).encode()}


@pytest.mark.parametrize("packer", ["plain", "bit-planes"])
def test_another_layout_holds_the_same_weights_and_the_way_back_the_same_bytes(
    checkpoint: Path, tmp_path: Path, packer: str
) -> None:
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    bits = repack(checkpoint, tmp_path / "other", packer)
    section = json.loads((tmp_path / "other" / "config.json").read_text())["quantization_config"]
    assert {entry["packer"] for entry in section["modules"].values()} == {packer}
    assert sum(bits.items.values()) == sum(f.stat().st_size for f in (tmp_path / "other").glob("*.safetensors"))
    first, second = load_model(checkpoint), load_model(tmp_path / "other")
    torch.testing.assert_close(logits(second.dequantize()), logits(first.dequantize()), rtol=0, atol=0)
    original = json.loads((checkpoint / "config.json").read_text())["quantization_config"]["packer"]["name"]
    repack(tmp_path / "other", tmp_path / "back", original)
    assert without_history(contents(tmp_path / "back")) == without_history(contents(checkpoint))


def test_a_place_that_is_taken_and_an_unknown_packer_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="exists"):
        repack(checkpoint, checkpoint, "plain")
    with pytest.raises(LowbitError, match="inside the checkpoint"):
        repack(checkpoint, checkpoint / "new", "plain")
    with pytest.raises(LowbitError, match="bit-planes"):
        repack(checkpoint, tmp_path / "new", "bit-plane")
    assert not (tmp_path / "new").exists()
