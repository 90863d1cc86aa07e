"""Weight targets: every linear weight of the blocks, experts included, each once."""

from __future__ import annotations

import pytest
import torch
from small_models import ARCHITECTURES, FUSED_EXPERTS, ModelFolder, load_model, make_config
from torch import nn

from lowbit.models import Decoder, find_decoder, find_targets, other_matrices, read_weight, write_weight
from lowbit.models.streamed import build_skeleton
from lowbit.quantization.plan import decoder_targets

MATRICES = {
    "llama": 21,
    "llama-tied": 21,
    "opt": 18,
    "gpt-neox": 12,
    "qwen2": 21,
    "qwen3": 21,
    "gpt2": 12,
    "gemma3": 21,
}
ROUTERS = {"mixtral": 3, "qwen3-moe": 3, "gpt-oss": 3, "deepseek-v3": 2}
EXPERTS = {"mixtral": 4, "qwen3-moe": 4, "gpt-oss": 4, "deepseek-v3": 4}
architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


@architectures
def test_every_matrix_of_the_blocks_is_a_target_or_a_router(architecture: str) -> None:
    if architecture == "gpt-oss" and not FUSED_EXPERTS:
        pytest.skip("transformers 4 cannot run the fused experts of GPT-OSS one by one")
    model = build_skeleton(make_config(architecture))
    decoder = find_decoder(model)
    targets = [target for block in decoder_targets(decoder) for target in block]
    others = {k: v for i, b in enumerate(decoder.blocks) for k, v in other_matrices(b, decoder.block_name(i)).items()}
    matrices = sum(
        p.numel() for b in decoder.blocks for n, p in b.named_parameters() if p.dim() > 1 and "bias" not in n
    )
    assert sum(target.weights for target in targets) + sum(others.values()) == matrices
    assert len(others) == ROUTERS.get(architecture, 0)
    assert len({target.name for target in targets}) == len(targets)
    if architecture in MATRICES:
        assert len(targets) == MATRICES[architecture]


@pytest.mark.parametrize("architecture", sorted(EXPERTS))
def test_experts_are_targets_of_their_own(architecture: str) -> None:
    if architecture == "gpt-oss" and not FUSED_EXPERTS:
        pytest.skip("transformers 4 cannot run the fused experts of GPT-OSS one by one")
    decoder = find_decoder(build_skeleton(make_config(architecture)))
    names = [target.name for target in decoder_targets(decoder)[-1] if ".experts." in target.name]
    assert len(names) == EXPERTS[architecture] * (2 if FUSED_EXPERTS else 3)


@architectures
def test_a_matrix_is_read_and_written_as_out_by_in(architecture: str, parent: ModelFolder) -> None:
    model = load_model(parent(architecture))
    decoder = find_decoder(model)
    for target in decoder_targets(decoder)[1]:
        weight = read_weight(model, target)
        assert weight.shape == (target.out_features, target.in_features)
        write_weight(model, target, torch.full(weight.shape, 0.5))
        stored = getattr(model.get_submodule(target.module), target.parameter)
        assert bool(((stored if target.expert is None else stored[target.expert]) == 0.5).all())


def test_conv1d_matrices_are_oriented_like_the_product_they_make(parent: ModelFolder) -> None:
    model = load_model(parent("gpt2"))
    decoder = find_decoder(model)
    target = next(t for t in decoder_targets(decoder)[0] if t.name.endswith("c_fc"))
    module = model.get_submodule(target.module)
    x = torch.randn(3, 32)
    torch.testing.assert_close(nn.functional.linear(x, read_weight(model, target), module.bias), module(x))


class TiedBlock(nn.Module):
    """A block whose two layers share one weight."""

    def __init__(self, shared: nn.Parameter | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        if shared is not None:
            self.first.weight = self.second.weight = shared


def test_a_weight_that_two_layers_share_is_one_target() -> None:
    assert [target.name for target in find_targets(TiedBlock(), "b.0")] == ["b.0.first"]


def test_a_weight_that_two_blocks_share_is_a_target_of_the_first() -> None:
    first = TiedBlock()
    blocks = nn.ModuleList([first, TiedBlock(first.first.weight), TiedBlock()])
    found = decoder_targets(Decoder("b", tuple(blocks)))
    assert [[target.name for target in block] for block in found] == [["b.0.first"], [], ["b.2.first"]]


def test_a_block_that_stands_twice_in_the_list_is_a_target_once() -> None:
    block = TiedBlock()
    found = decoder_targets(Decoder("b", (block, block)))
    assert [[target.name for target in targets] for targets in found] == [["b.0.first"], []]
