"""The decoding benchmark: variants take turns, tokens agree, parts add up, memory counts what loading took."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lowbit.errors import LowbitError
from lowbit.modeling.surgery import packed_modules

BENCHMARK = "decoding"
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
}
TOKENS = 5


@pytest.fixture(scope="module")
def checkpoint(benchmark_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmark_module.make_checkpoint(tmp_path_factory.mktemp("decoding"), SHAPE, "dbllm-ptq", 0)


@pytest.fixture(scope="module")
def outcomes(benchmark_module: ModuleType, checkpoint: Path) -> list[Any]:
    variants = [benchmark_module.Variant(backend, "float32") for backend in ("dense", "packed")]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(benchmark_module, "peak_elsewhere", lambda *_: 3 * 2**20)
        return benchmark_module.measure(checkpoint, variants, 4, TOKENS, 2, 1, 0)


def test_a_checkpoint_is_made_once(benchmark_module: ModuleType, checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    before = file.stat().st_mtime_ns
    assert benchmark_module.make_checkpoint(checkpoint.parent, SHAPE, "dbllm-ptq", 0) == checkpoint
    assert file.stat().st_mtime_ns == before


def test_packed_and_dense_decode_the_same_tokens(outcomes: list[Any]) -> None:
    dense, packed = outcomes
    assert dense.same_tokens == packed.same_tokens == 1.0
    assert dense.kernels == ()
    assert packed.kernels
    assert packed.weight_bytes < dense.weight_bytes


def test_rates_follow_from_the_tokens(outcomes: list[Any]) -> None:
    for one in outcomes:
        assert len(one.runs) == len(one.prompt) == 2
        assert one.token.calls == 2 * TOKENS
        assert one.rate == statistics.median(one.runs)
        assert 1 / one.token.fastest >= one.rate > 0


def test_parts_of_the_profile_are_all_there_and_positive(outcomes: list[Any]) -> None:
    for one in outcomes:
        assert list(one.profile) == [
            "attention projections",
            "feed-forward projections",
            "output head",
            "everything else",
        ]
        assert all(seconds > 0 for seconds in one.profile.values())


def test_the_tables_have_a_row_for_each_variant(benchmark_module: ModuleType, outcomes: list[Any]) -> None:
    text = benchmark_module.to_markdown(outcomes)
    assert text.count("| dense float32 |") == text.count("| packed float32 |") == 2
    assert "| 3 |" in text
    assert "ms a token" in text
    assert json.loads(json.dumps([asdict(one) for one in outcomes]))[1]["variant"] == "packed float32"


def test_time_in_a_layer_counts_for_its_part(benchmark_module: ModuleType) -> None:
    class Slow(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01)
            return super().forward(x)

    model = nn.ModuleDict({"mlp": nn.Sequential(Slow(2, 2)), "lm_head": nn.Linear(2, 2)})
    with benchmark_module.timed_parts(model) as seconds:
        for module in (model["mlp"], model["lm_head"]):
            module(torch.ones(1, 2))
    assert seconds["feed-forward projections"] >= 0.01 > seconds["output head"] > 0
    assert seconds["attention projections"] == seconds["everything else"] == 0
    model["mlp"](torch.ones(1, 2))
    assert seconds["feed-forward projections"] < 0.1


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.0.self_attn.q_proj", "attention projections"),
        ("model.layers.3.mlp.down_proj", "feed-forward projections"),
        ("lm_head", "output head"),
        ("model.other", "everything else"),
    ],
)
def test_layers_belong_to_parts_by_their_names(benchmark_module: ModuleType, name: str, part: str) -> None:
    assert benchmark_module.part_of(name) == part


def test_the_peak_counts_what_loading_and_decoding_took(benchmark_module: ModuleType, checkpoint: Path) -> None:
    with torch.inference_mode():
        peak = benchmark_module.peak_here(str(checkpoint), {"backend": "dense", "dtype": "float32"}, 4, 0)
    assert 0 < peak < 2**30


def test_each_dtype_is_run_dense_and_packed(benchmark_module: ModuleType) -> None:
    names = [str(variant) for variant in benchmark_module.variants_of("bfloat16,float32")]
    assert names == ["dense float32", "packed float32", "dense bfloat16", "packed bfloat16"]
    with pytest.raises(LowbitError, match="dtype 'int8' is unknown"):
        benchmark_module.variants_of("float32,int8")


def test_the_packed_variant_is_packed(benchmark_module: ModuleType, checkpoint: Path) -> None:
    model = benchmark_module.load(checkpoint, benchmark_module.Variant("packed", "bfloat16"))
    assert len(packed_modules(model)) == 7 * SHAPE["num_hidden_layers"]
    assert model.lm_head.weight.dtype == torch.bfloat16
