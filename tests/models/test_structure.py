"""Decoder blocks are found by structure."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from small_models import ARCHITECTURES, ModelFolder, make_config
from torch import nn

from lowbit.errors import LowbitError
from lowbit.models import find_decoder, streamed
from lowbit.models.streamed import StreamedModel, build_skeleton

NAMES = {"opt": "model.decoder.layers", "gpt-neox": "gpt_neox.layers", "gpt2": "transformer.h"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoder_is_found_in_every_architecture(architecture: str) -> None:
    decoder = find_decoder(build_skeleton(make_config(architecture)))
    assert decoder.name == NAMES.get(architecture, "model.layers")
    assert len(decoder.blocks) == 3
    assert decoder.block_name(2) == f"{decoder.name}.2"


def test_experts_inside_a_block_are_not_taken_for_the_decoder() -> None:
    config = make_config("qwen3-moe")
    config.num_experts = 32
    config.num_hidden_layers = 1
    assert find_decoder(build_skeleton(config)).name == "model.layers"


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(LowbitError, match=r"nn\.ModuleList"):
        find_decoder(nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize("other", ["layers.0.mlp.gate_proj", "layers.2.mlp.up_proj"])
def test_blocks_that_share_a_matrix_are_refused_by_both_names(
    other: str, parent: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tied(*args: Any) -> Any:
        model = build_skeleton(*args)
        model.model.get_submodule(other).weight = model.model.layers[0].mlp.up_proj.weight
        return model

    monkeypatch.setattr(streamed, "build_skeleton", tied)
    with pytest.raises(LowbitError, match="one shared weight") as caught:
        StreamedModel(parent("llama"))
    assert f"model.{other}.weight" in str(caught.value)
    assert "model.layers.0.mlp.up_proj.weight" in str(caught.value)


def test_the_skeleton_holds_no_parameters() -> None:
    model = build_skeleton(make_config("llama"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_a_configuration_that_is_no_causal_model_is_refused() -> None:
    with pytest.raises(LowbitError, match="no causal language model"):
        build_skeleton(transformers.CLIPVisionConfig())
