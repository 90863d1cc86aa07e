"""Tensor names of files become those of models by transformers' own rules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES, FUSED_EXPERTS, ModelFolder, load_model, quantize
from torch import Tensor

from lowbit.models.streamed import StreamedModel


def rename_tensors(source: Path, folder: Path, rename: Callable[[str], str], **more: Tensor) -> Path:
    """Copy a model with other tensor names, and more tensors."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    save_file({**{rename(n): t for n, t in tensors.items()}, **more}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_names_without_the_models_prefix_and_old_buffers_are_understood(
    parent: ModelFolder, packed: ModelFolder, tmp_path: Path
) -> None:
    mask = torch.ones(1, 1, 128, 128).tril()
    old = rename_tensors(
        parent("gpt2"), tmp_path / "old", lambda name: name.removeprefix("transformer."), **{"h.0.attn.bias": mask}
    )
    quantize(old, tmp_path / "out")
    made, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", packed("gpt2")))
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_streamed_blocks_hold_what_from_pretrained_loads(architecture: str, parent: ModelFolder) -> None:
    if architecture == "gpt-oss" and not FUSED_EXPERTS:
        pytest.skip("transformers 4 cannot run the fused experts of GPT-OSS one by one")
    expected = load_model(parent(architecture)).state_dict()
    source = StreamedModel(parent(architecture))
    for index in range(len(source.decoder.blocks)):
        prefix = source.decoder.block_name(index) + "."
        with source.block(index) as block:
            state = block.state_dict(prefix=prefix)
            assert state.keys() == {name for name in expected if name.startswith(prefix)}
            assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
        assert all(parameter.is_meta for parameter in block.parameters())
    outside = source.outside()
    assert outside
    assert all(torch.equal(tensor, expected[name]) for name, tensor in outside.items())
