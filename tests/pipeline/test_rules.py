from __future__ import annotations

from pathlib import Path

import torch

import lowbit
from lowbit.modeling.quant_linear import QuantLinear
from lowbit.pipeline.load import logits_of
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.recipe import resolve_recipe
from lowbit.registry import registry


def test_rules_mix_formats_group_sizes_and_untouched_layers_in_one_checkpoint(tmp_path: Path) -> None:
    file = {
        "rules": [
            {"match": "layers.0.mlp.down_proj", "skip": True},
            {"match": "*.down_proj", "quantizer": {"name": "rtn", "bits": 4}},
            {"match": "re:q_proj$", "quantizer": {"group_size": 32}},
        ]
    }
    recipe = resolve_recipe(registry(), "dbllm-ptq", file)
    outcome = quantize_to(recipe, tmp_path / "mixed", HookEvents(recipe))
    assert outcome.coverage["skipped"].keys() == {"model.layers.0.mlp.down_proj"}
    assert 0.8 < outcome.coverage["share"] < 1

    model = lowbit.load(tmp_path / "mixed", dtype="float32")
    found = {name: module.spec for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    assert found["model.layers.1.mlp.down_proj"].format == "uniform"
    assert found["model.layers.1.mlp.down_proj"].parameters["bits"] == 4
    assert found["model.layers.1.self_attn.q_proj"].parameters["group_size"] == 32
    assert found["model.layers.1.self_attn.k_proj"].parameters["group_size"] == 64
    assert "model.layers.0.mlp.down_proj" not in found

    tokens = torch.arange(1, 33).unsqueeze(0)
    dense = lowbit.load(tmp_path / "mixed", backend="dense", dtype="float32")
    torch.testing.assert_close(logits_of(model, tokens), logits_of(dense, tokens), rtol=1e-4, atol=1e-4)


def test_more_bits_on_some_layers_lower_the_error_there(tmp_path: Path) -> None:
    errors = {}
    for bits in (2, 4):
        recipe = resolve_recipe(registry(), "rtn", {"quantizer": {"bits": bits}})
        outcome = quantize_to(recipe, tmp_path / str(bits), HookEvents(recipe))
        errors[bits] = sum(layer["relative_error"] for layer in outcome.layers)
    assert errors[4] < errors[2] / 10
