"""Small causal language models of many architectures with random weights, and a tokenizer for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lowbit.modeling.packed_experts import PackedExperts
from lowbit.modeling.packed_linear import PackedLinear
from lowbit.modeling.quant_linear import QuantLinear
from lowbit.models.experts import PACKED_SUFFIX
from lowbit.pipeline.quantize import HookEvents, QuantizationOutcome, quantize_to
from lowbit.recipe import Recipe, resolve_recipe
from lowbit.registry import registry

FUSED_EXPERTS = int(transformers.__version__.split(".")[0]) >= 5
VOCABULARY = 96
ARCHITECTURES = (
    "llama",
    "llama-tied",
    "opt",
    "gpt-neox",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma3",
    "mixtral",
    "qwen3-moe",
    "gpt-oss",
    "deepseek-v3",
)
"""Every architecture that `make_config` knows."""

ModelFolder = Callable[[str], Path]


def make_config(architecture: str) -> PretrainedConfig:
    """Return the configuration of a model of two or three narrow blocks."""
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        **ends,
    }
    grouped = {**common, "num_key_value_heads": 2, "pad_token_id": 0}
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2}
    makers: dict[str, Callable[[], PretrainedConfig]] = {
        "llama": lambda: transformers.LlamaConfig(**grouped, tie_word_embeddings=False),
        "llama-tied": lambda: transformers.LlamaConfig(**grouped, tie_word_embeddings=True),
        "opt": lambda: transformers.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=128, word_embed_proj_dim=32, pad_token_id=0, **ends,
        ),
        "gpt-neox": lambda: transformers.GPTNeoXConfig(**common),
        "qwen2": lambda: transformers.Qwen2Config(**grouped),
        "qwen3": lambda: transformers.Qwen3Config(**grouped, head_dim=8),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, **ends
        ),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **grouped, head_dim=8, sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "mixtral": lambda: transformers.MixtralConfig(**grouped, **mixture),
        "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
            **grouped, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        ),
        "gpt-oss": lambda: transformers.GptOssConfig(
            **grouped, **mixture, head_dim=8, sliding_window=8, **({} if FUSED_EXPERTS else {"rope_scaling": None})
        ),
        "deepseek-v3": lambda: transformers.DeepseekV3Config(
            **common, num_key_value_heads=4, moe_intermediate_size=24, n_routed_experts=4, n_shared_experts=1,
            num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16,
            qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        ),
    }  # fmt: skip
    return makers[architecture]()


def make_parent(folder: Path, config: PretrainedConfig, seed: int = 0, **saving: Any) -> Path:
    """Save a model with random weights, biases and norms included, and its tokenizer."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, **saving)
    make_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def make_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words `w3`, `w4`, ..."""
    special = ["<pad>", "<s>", "</s>"]
    ids = {token: number for number, token in enumerate([*special, *(f"w{n}" for n in range(3, vocabulary))])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def make_recipe(parent: Path, method: str = "dbllm-ptq", **flags: Any) -> Recipe:
    """Resolve the recipe of a method over a parent."""
    return resolve_recipe(registry(), method, flags={"model": {"path": str(parent)}, **flags})


def quantize(parent: Path, output: Path, method: str = "dbllm-ptq", **flags: Any) -> QuantizationOutcome:
    """Quantize a parent through the whole pipeline."""
    recipe = make_recipe(parent, method, **flags)
    return quantize_to(recipe, output, HookEvents(recipe))


def load_model(folder: Path, **options: Any) -> PreTrainedModel:
    """Load a model with `from_pretrained`; float32 unless another dtype is given."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Run a model on fixed tokens: [2, 24, vocabulary]."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, VOCABULARY, (2, 24), generator=generator)
    return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def replace_by_dequantized(parent: PreTrainedModel, packed: PreTrainedModel) -> int:
    """Overwrite a parent's weights with what a packed model's stand for; returns how many matrices that were."""
    count = 0
    modules = dict(parent.named_modules())
    for name, module in packed.named_modules():
        if isinstance(module, QuantLinear):
            weight = modules[name].weight
            dense = module.dequantize()
            weight.copy_(dense.T if type(modules[name]).__name__ == "Conv1D" else dense)
            count += 1
        elif isinstance(module, PackedExperts):
            owner, _, leaf = name.rpartition(".")
            fused = getattr(modules[owner], leaf.removesuffix(PACKED_SUFFIX))
            for expert in range(len(module)):
                dense = module.expert(expert).dequantize()
                fused[expert].copy_(dense.T if modules[owner].is_transposed else dense)
                count += 1
    return count


def stored_tensors(model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
    """Return every buffer of a model's packed modules, by name."""
    return {
        f"{name}.{part}": tensor
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear)
        for part, tensor in module.named_buffers(recurse=False)
    }


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Makes the parent of an architecture, once."""
    root = tmp_path_factory.mktemp("parents")

    def make(architecture: str) -> Path:
        folder = root / architecture
        return folder if folder.exists() else make_parent(folder, make_config(architecture))

    return make


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, parent: ModelFolder) -> ModelFolder:
    """Quantizes an architecture's parent by dual binarization, once."""
    root = tmp_path_factory.mktemp("packed")

    def make(architecture: str) -> Path:
        folder = root / architecture
        if not folder.exists():
            quantize(parent(architecture), folder)
        return folder

    return make
