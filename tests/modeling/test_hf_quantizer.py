"""Packed checkpoints through transformers: load, run, dequantize, save, cast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_models import (
    ARCHITECTURES,
    FUSED_EXPERTS,
    ModelFolder,
    load_model,
    logits,
    replace_by_dequantized,
    stored_tensors,
)

QUANTIZABLE = [
    pytest.param(
        name, marks=pytest.mark.skipif(not FUSED_EXPERTS, reason="transformers 4 cannot run fused experts one by one")
    )
    if name == "gpt-oss"
    else name
    for name in ARCHITECTURES
]
architectures = pytest.mark.parametrize("architecture", QUANTIZABLE)


@architectures
def test_packed_logits_equal_those_of_the_parent_with_dequantized_weights(
    architecture: str, parent: ModelFolder, packed: ModelFolder
) -> None:
    model = load_model(packed(architecture))
    dense = load_model(parent(architecture))
    before = logits(dense)
    assert replace_by_dequantized(dense, model) == len(model.config.quantization_config.modules)
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-5)
    assert (before - logits(model)).abs().max() > 1e-2


@architectures
def test_dequantize_returns_the_parents_modules_with_equal_logits(
    architecture: str, packed: ModelFolder, parent: ModelFolder
) -> None:
    model = load_model(packed(architecture))
    expected = logits(model)
    dense = model.dequantize()
    assert not stored_tensors(dense)
    torch.testing.assert_close(logits(dense), expected, rtol=1e-4, atol=1e-5)
    original = load_model(parent(architecture))
    assert {n: t.shape for n, t in dense.state_dict().items()} == {n: t.shape for n, t in original.state_dict().items()}


@architectures
def test_a_dequantized_model_saves_as_an_ordinary_one(
    architecture: str, packed: ModelFolder, parent: ModelFolder, tmp_path: Path
) -> None:
    model = load_model(packed(architecture)).dequantize()
    expected = logits(model)
    model.save_pretrained(tmp_path / "dense")
    again = load_model(tmp_path / "dense")
    assert not stored_tensors(again)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)
    stored, original = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "dense", parent(architecture))
    )
    # transformers 5 writes some tensors under a newer name than it once did.
    assert sorted(t.shape for t in stored.values()) == sorted(t.shape for t in original.values())


@architectures
def test_save_and_reload_keep_every_tensor_and_logit(architecture: str, packed: ModelFolder, tmp_path: Path) -> None:
    model = load_model(packed(architecture))
    model.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    before, after = stored_tensors(model), stored_tensors(again)
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    first, second = (load_file(folder / "model.safetensors") for folder in (packed(architecture), tmp_path / "again"))
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert first.keys() - tied == second.keys() - tied


@architectures
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_a_model_keeps_scales_as_stored(architecture: str, dtype: torch.dtype, packed: ModelFolder) -> None:
    model = load_model(packed(architecture))
    before = {name: tensor.clone() for name, tensor in stored_tensors(model).items()}
    model.to(dtype)
    after = stored_tensors(model)
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    assert model.get_input_embeddings().weight.dtype == dtype
    assert logits(model).dtype == dtype


@architectures
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, "auto"])
def test_loading_in_any_dtype_keeps_scales_as_stored(
    architecture: str, dtype: torch.dtype | str, packed: ModelFolder
) -> None:
    model = load_model(packed(architecture), dtype=dtype)
    file = load_file(packed(architecture) / "model.safetensors")
    tensors = stored_tensors(model)
    assert tensors
    assert all(tensor.dtype == file[name].dtype and torch.equal(tensor, file[name]) for name, tensor in tensors.items())
    assert model.get_input_embeddings().weight.dtype == (torch.float32 if dtype == "auto" else dtype)


@architectures
def test_nothing_of_a_packed_checkpoint_is_missing_or_unexpected(architecture: str, packed: ModelFolder) -> None:
    _, info = transformers.AutoModelForCausalLM.from_pretrained(packed(architecture), output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
