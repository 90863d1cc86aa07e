"""Loads models for use and evaluation: parents, packed checkpoints, and their dense form."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowbit.errors import CheckpointError, LowbitError
from lowbit.modeling.hf_quantizer import register
from lowbit.modeling.packed_linear import binding_later
from lowbit.modeling.surgery import packed_modules
from lowbit.models.checkpoint import ParentCheckpoint, find_model_folder
from lowbit.models.configuration import read_config_json, require_accounted
from lowbit.models.small_files import require_ordinary_files
from lowbit.models.streamed import build_skeleton, quiet, read_config
from lowbit.recipe.model import Backend, Dtype
from lowbit.untrusted import printable


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
    _require_sound(folder, quantized, trust_remote_code)
    if quantized:
        register()
    wanted = resolve_dtype(folder, dtype, device)
    try:
        with quiet(), binding_later() if backend == "dense" else nullcontext():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=wanted, trust_remote_code=trust_remote_code, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
    except LowbitError:
        raise
    except Exception as error:  # a configuration may break transformers in any way
        first = printable(" ".join(str(error).split())[:400])
        raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {first}") from error
    model, told = loaded
    _refuse_missing(folder, told)
    if not quantized:
        _refuse_surplus(folder, told)
    if quantized and not packed_modules(model):
        raise CheckpointError(f"{folder} was loaded without its packed layers; lowbit is not registered")
    if quantized and backend == "dense":
        model = model.dequantize()
    if device is not None:
        model = model.to(device)
    return model.eval()


def _require_sound(folder: Path, quantized: bool, trust_remote_code: bool) -> None:
    """Compare configuration and files before a tensor is made, so that nothing absurd is built.

    Raises:
        LowbitError: They do not belong together, or one of them is damaged.
    """
    checkpoint = ParentCheckpoint(folder)
    config = read_config(folder, trust_remote_code)
    others = getattr(config, "quantization_config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    require_accounted(build_skeleton(config, trust_remote_code), checkpoint, bits_packed=quantized or bool(others))


def _refuse_missing(folder: Path, told: dict[str, Any]) -> None:
    """Refuse a model some of whose weights no file held: they would be random numbers."""
    missing = sorted(map(str, told.get("missing_keys") or ()))
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors ({', '.join(missing[:3])}); it is incomplete")


def _refuse_surplus(folder: Path, told: dict[str, Any]) -> None:
    """Refuse a model that leaves matrices of its files out: config.json describes another, such as a shallower one."""
    shapes = ParentCheckpoint(folder).shapes
    surplus = sorted(name for name in map(str, told.get("unexpected_keys") or ()) if len(shapes.get(name, ())) == 2)
    if surplus:
        raise CheckpointError(
            f"{folder} holds {len(surplus)} matrices that its config.json has no place for, such as {surplus[0]}; "
            "the two do not belong together"
        )


def resolve_dtype(folder: Path, dtype: Dtype, device: str | None) -> Dtype:
    """Return the dtype to load a model in: `auto` becomes float32 where a float16 checkpoint meets a CPU."""
    if dtype != "auto" or not (device or "cpu").startswith("cpu"):
        return dtype
    config = read_config_json(folder)
    stored = config.get("dtype") or config.get("torch_dtype")
    return "float32" if stored == "float16" else "auto"


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> Any:
    """Load a model's tokenizer.

    Raises:
        LowbitError: The folder has none, or it is damaged.
    """
    require_ordinary_files(Path(path))
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # a tokenizer's files may break transformers in any way
        told = printable(" ".join(str(error).split())[:300])
        raise LowbitError(f"{path} has no readable tokenizer: {told}") from error


def is_quantized(folder: Path) -> bool:
    """Say whether a folder is a lowbit checkpoint.

    Raises:
        LowbitError: Its config.json is damaged.
    """
    section = read_config_json(folder).get("quantization_config")
    return isinstance(section, dict) and section.get("quant_method") == "lowbit"


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return float32 logits [samples, length, vocabulary] for tokens [samples, length]."""
    logits: torch.Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return logits.float().cpu()
