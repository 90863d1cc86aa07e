"""Coverage counts every matrix of the decoder blocks, experts and routers included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import ARCHITECTURES, FUSED_EXPERTS, ModelFolder, load_model, make_recipe, quantize

from lowbit.errors import LowbitError
from lowbit.models import find_decoder
from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.targets import plan_for
from lowbit.quantization.plan import make_plan, require_covered
from lowbit.registry import registry

ROUTERS = ("mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_everything_but_routers_is_covered(architecture: str, parent: ModelFolder, packed: ModelFolder) -> None:
    if architecture == "gpt-oss" and not FUSED_EXPERTS:
        pytest.skip("transformers 4 cannot run the fused experts of GPT-OSS one by one")
    written = json.loads((packed(architecture) / "config.json").read_text())["quantization_config"]
    model = load_model(parent(architecture))
    blocks = find_decoder(model).blocks
    total = sum(p.numel() for b in blocks for n, p in b.named_parameters() if p.dim() > 1 and not n.endswith("bias"))
    coverage = written["coverage"]
    assert coverage["quantized_weights"] == written["bits_report"]["quantized_weights"]
    assert coverage["quantized_weights"] + sum(coverage["other_matrices"].values()) == total
    assert coverage["quantized_targets"] == len(written["modules"])
    assert coverage["share"] == pytest.approx(coverage["quantized_weights"] / total)
    assert not coverage["skipped"]
    assert bool(coverage["other_matrices"]) == (architecture in ROUTERS)


@pytest.mark.skipif(FUSED_EXPERTS, reason="transformers 5 can run fused experts")
def test_experts_that_cannot_be_quantized_are_refused_by_name(parent: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="experts"):
        quantize(parent("gpt-oss"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_skipped_layers_are_named_with_their_sizes(parent: ModelFolder) -> None:
    recipe = make_recipe(parent("llama"), rules=[{"match": r"re:.*\.0\.mlp\.up_proj", "skip": True}])
    coverage = plan_for(recipe, StreamedModel(parent("llama")).decoder, registry()).coverage()
    assert coverage.skipped == {"model.layers.0.mlp.up_proj": 48 * 32}
    assert 0.9 < coverage.share < 1


def test_a_plan_that_quantizes_nothing_is_refused(parent: ModelFolder) -> None:
    with pytest.raises(LowbitError, match="leave no layer"):
        make_plan(StreamedModel(parent("llama")).decoder, {})


def test_promised_layers_that_were_not_quantized_are_named() -> None:
    require_covered(["a", "b"], {"a", "b"})
    with pytest.raises(LowbitError, match=r"1 layers .* b$"):
        require_covered(["a", "b"], {"a"})
