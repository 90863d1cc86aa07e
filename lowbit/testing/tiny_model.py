"""A model of two narrow blocks with biases and tied embeddings, its tokenizer and calibration tokens, on disk."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lowbit.models.streamed import quiet

VOCABULARY = 64
SAMPLES = 4
LENGTH = 24


@dataclass(frozen=True)
class TinyModel:
    """Where the model lies, and the tokens to calibrate it with."""

    folder: Path
    tokens: Path


@cache
def work_folder() -> Path:
    """Return a temporary folder that goes away with the process."""
    folder = Path(tempfile.mkdtemp(prefix="lowbit-conformance-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def tiny_model() -> TinyModel:
    """Write the model, once a process.

    Its widths, 40 and 72, are no multiples of common group sizes. Every linear layer of its blocks has a bias, and its
    head is the embedding.
    """
    folder = work_folder() / "parent"
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=40,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=LENGTH,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        with quiet():
            model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    tokens = folder.parent / "tokens.npz"
    drawn = np.random.default_rng(0).integers(3, VOCABULARY, (SAMPLES, LENGTH))
    np.savez(tokens, tokens=drawn)
    return TinyModel(folder, tokens)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words `w3`, `w4`, ..."""
    special = ["<pad>", "<s>", "</s>"]
    words = {token: number for number, token in enumerate([*special, *(f"w{n}" for n in range(3, VOCABULARY))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def prompt() -> Tensor:
    """Return tokens to run the model on, int64 [2, length]."""
    return torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(5))
