"""Loads models for use and evaluation: parents, packed checkpoints, and their dense form."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowbit.errors import CheckpointError, LowbitError
from lowbit.modeling.hf_quantizer import register
from lowbit.modeling.packed_linear import binding_later
from lowbit.modeling.surgery import packed_modules
from lowbit.models.checkpoint import ParentCheckpoint, find_model_folder
from lowbit.models.streamed import quiet
from lowbit.recipe.model import Backend, Dtype


def load(
    path: str | Path,
    backend: Backend = "packed",
    dtype: Dtype = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a lowbit checkpoint, or an unquantized model, ready to run.

    Args:
        path: A model's folder or hub id.
        backend: `packed` multiplies through kernels; `dense` dequantizes every weight once.
        dtype: Of everything that is not quantized; `auto` is the one the checkpoint was stored in, but float32 for
            float16 on a CPU, which has no fast float16 arithmetic.
        device: Where to put the model; `None` for the CPU.
        trust_remote_code: Whether to run code that comes with the model.

    Returns:
        A transformers causal language model in evaluation mode.

    Raises:
        LowbitError: The folder is absent, damaged, incomplete, or needs a plugin that is not installed.
    """
    folder = find_model_folder(str(path), None)
    quantized = is_quantized(folder)
    ParentCheckpoint(folder)
    if quantized:
        register()
    wanted = resolve_dtype(folder, dtype, device)
    try:
        with quiet(), binding_later() if backend == "dense" else nullcontext():
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=wanted, trust_remote_code=trust_remote_code
            )
    except LowbitError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = " ".join(str(error).split())[:400]
        raise CheckpointError(f"{folder} cannot be loaded: {first}") from error
    if quantized and not packed_modules(model):
        raise CheckpointError(f"{folder} was loaded without its packed layers; lowbit is not registered")
    if quantized and backend == "dense":
        model = model.dequantize()
    if device is not None:
        model = model.to(device)
    return model.eval()


def resolve_dtype(folder: Path, dtype: Dtype, device: str | None) -> Dtype:
    """Return the dtype to load a model in: `auto` becomes float32 where a float16 checkpoint meets a CPU."""
    if dtype != "auto" or not (device or "cpu").startswith("cpu"):
        return dtype
    config = _read_config(folder)
    stored = config.get("dtype") or config.get("torch_dtype")
    return "float32" if stored == "float16" else "auto"


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> Any:
    """Load a model's tokenizer.

    Raises:
        LowbitError: The folder has none, or it is damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise LowbitError(f"{path} has no readable tokenizer: {' '.join(str(error).split())[:300]}") from error


def is_quantized(folder: Path) -> bool:
    """Say whether a folder is a lowbit checkpoint.

    Raises:
        LowbitError: Its config.json is damaged.
    """
    section = _read_config(folder).get("quantization_config")
    return isinstance(section, dict) and section.get("quant_method") == "lowbit"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LowbitError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise LowbitError(f"{folder / 'config.json'} must hold a JSON object")
    return config


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return float32 logits [samples, length, vocabulary] for tokens [samples, length]."""
    logits: torch.Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return logits.float().cpu()
