from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import ModelFolder, quantize

from lowbit.contracts.training import GenerationSettings
from lowbit.embedded import model_path
from lowbit.errors import LowbitError
from lowbit.evaluation.perplexity import window_losses
from lowbit.pipeline import generate as module
from lowbit.pipeline.generate import generate_file, generate_tokens
from lowbit.pipeline.load import load

SMALL = GenerationSettings(n_samples=6, batch_size=4, seq_len=12)


def silent(done: int, total: int) -> None:
    pass


def fail(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("the model was loaded")


def test_the_embedded_model_finds_its_own_text_far_likelier_than_random_tokens(tmp_path: Path) -> None:
    settings = GenerationSettings(n_samples=16, batch_size=16)
    tokens = generate_tokens(model_path(), settings, 64, 0, "cpu", tmp_path, silent).tokens
    model = load(model_path(), "dense")
    random = torch.randint(0, 1536, tokens.shape, generator=torch.Generator().manual_seed(0))
    own, foreign = (window_losses(model, windows).mean().exp() for windows in (tokens, random))
    assert own < 100 < foreign / 10


def test_kept_tokens_are_used_without_the_model(
    tmp_path: Path, parent: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generate_tokens(parent("llama"), SMALL, 12, 0, "cpu", tmp_path, silent)
    monkeypatch.setattr(module, "load", fail)
    again = generate_tokens(parent("llama"), SMALL, 12, 0, "cpu", tmp_path, silent)
    assert again.sha256 == first.sha256
    with pytest.raises(AssertionError, match="loaded"):
        generate_tokens(parent("gpt2"), SMALL, 12, 0, "cpu", tmp_path, silent)


def test_a_quantized_checkpoint_can_write_too(tmp_path: Path, parent: ModelFolder) -> None:
    quantize(parent("llama"), tmp_path / "checkpoint", "rtn", calibration={"n_samples": 2, "seq_len": 16})
    tokens = generate_tokens(tmp_path / "checkpoint", SMALL, 12, 0, "cpu", tmp_path / "store", silent)
    assert tokens.tokens.shape == (6, 12)


def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path: Path, parent: ModelFolder) -> None:
    with pytest.raises(LowbitError, match="129 tokens exceed the model's 128 positions"):
        generate_tokens(parent("llama"), SMALL, 129, 0, "cpu", tmp_path, silent)


def test_an_absent_device_is_refused(tmp_path: Path, parent: ModelFolder) -> None:
    with pytest.raises(LowbitError, match="device"):
        generate_tokens(parent("llama"), SMALL, 12, 0, "nonsense", tmp_path, silent)


def test_a_file_has_the_models_positions_where_no_length_is_given(tmp_path: Path, parent: ModelFolder) -> None:
    settings = GenerationSettings(n_samples=2)
    tokens = generate_file(tmp_path / "tokens.npz", str(parent("llama")), settings, 0, silent)
    assert tokens.tokens.shape == (2, 128)


def test_a_token_file_needs_the_suffix_of_one(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match=r"\.npz"):
        generate_file(tmp_path / "tokens.json", None, SMALL, 0, silent)


def test_the_dtype_decides_the_tokens_and_is_written_down(tmp_path: Path, parent: ModelFolder) -> None:
    output = tmp_path / "tokens.npz"
    generate_file(output, str(parent("llama")), SMALL, 0, silent, dtype="bfloat16")
    assert json.loads((tmp_path / "tokens.json").read_text())["key"]["dtype"] == "bfloat16"
    with pytest.raises(LowbitError, match=r"key\.dtype: 'bfloat16' there, 'float32' now"):
        generate_file(output, str(parent("llama")), SMALL, 0, silent, dtype="float32")
