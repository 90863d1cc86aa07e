"""What must hold of a checkpoint on disk and of the model that is loaded from it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.modeling.quant_linear import QuantLinear
from lowbit.models.streamed import quiet
from lowbit.testing.checkpoints import logits_of, stored_tensors, weight_files
from lowbit.testing.failure import ANY_ERROR, ConformanceError
from lowbit.testing.sameness import tensor_difference
from lowbit.testing.tiny_checkpoint import load_packed, load_parent
from lowbit.testing.tiny_model import prompt, work_folder

LOGIT_TOLERANCE = 1e-4
"""Largest difference of logits in float32, as a share of the largest logit."""


def require_file_in_model(folder: Path, reproduce: str) -> None:
    """Check that the model that `from_pretrained` gives holds, and saves again, every bit of the file.

    Raises:
        ConformanceError: It does not.
    """
    model = _load(folder, reproduce)
    stored = stored_tensors(folder)
    _require_same(stored, model.state_dict(), "every tensor of the file, bit by bit, in the loaded model", reproduce)
    with quiet(), tempfile.TemporaryDirectory(dir=work_folder()) as again:
        model.save_pretrained(again)
        saved = stored_tensors(Path(again))
    _require_same(stored, saved, "the same tensors in a file that the loaded model is saved to", reproduce)


def _load(folder: Path, reproduce: str) -> Any:
    try:
        return load_packed(folder)
    except ANY_ERROR as error:  # whatever the code under test raises
        raise ConformanceError(
            "a checkpoint that AutoModelForCausalLM.from_pretrained loads",
            f"{type(error).__name__}: {error}",
            reproduce,
        ) from error


def _require_same(expected: dict[str, Tensor], found: dict[str, Tensor], what: str, reproduce: str) -> None:
    for name, tensor in expected.items():
        told = f"no tensor {name}" if name not in found else tensor_difference(name, tensor, found[name])
        if told:
            raise ConformanceError(what, told, reproduce)


def require_dense_logits(folder: Path, reproduce: str) -> None:
    """Check that the packed model computes what the parent computes with dequantized weights in its place.

    Raises:
        ConformanceError: It does not.
    """
    packed, dense = _load(folder, reproduce), load_parent()
    modules = dict(dense.named_modules())
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, QuantLinear):
                modules[name].weight.copy_(module.dequantize())
    expected, found = logits_of(dense, prompt()), logits_of(packed, prompt())
    error, allowed = float((expected - found).abs().max()), LOGIT_TOLERANCE * float(expected.abs().max())
    if not error <= allowed:
        raise ConformanceError(
            f"logits within {allowed:.3g} of those of the dequantized weights", f"logits {error:.3g} off", reproduce
        )


def require_rest_unchanged(folder: Path, reproduce: str) -> None:
    """Check that biases and norms are the parent's, and that the head is still the embedding.

    Raises:
        ConformanceError: They are not.
    """
    model, parent = _load(folder, reproduce), load_parent()
    found = dict(model.named_parameters())
    for name, expected in parent.named_parameters():
        if name not in found and name.endswith("_proj.weight"):
            continue
        told = f"no {name}" if name not in found else tensor_difference(name, expected, found[name])
        if told:
            raise ConformanceError("biases, norms and embeddings as in the parent", told, reproduce)
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        raise ConformanceError("a head that is the embedding, as in the parent", "two tensors", reproduce)


def require_measured_bits(folder: Path, reproduce: str) -> None:
    """Check the bits that a checkpoint reports against the bytes of its files.

    Raises:
        ConformanceError: They differ.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    report, modules = config["bits_report"], config["modules"]
    stored = stored_tensors(folder)
    measured = sum(tensor.nbytes for name, tensor in stored.items() if _is_packed(name, modules))
    weights = sum(entry["sizes"]["out"] * entry["sizes"]["in"] for entry in modules.values())
    files = sum(file.stat().st_size for file in weight_files(folder))
    checked = {
        "quantized_bits": (8 * measured / weights, report["quantized_bits"]),
        "file_bytes": (files, report["file_bytes"]),
        "the sum of the items": (files, sum(report["items"].values())),
    }
    for name, (expected, found) in checked.items():
        if abs(expected - found) > 1e-9 * abs(expected):
            raise ConformanceError(f"{name} of {expected:.9g}, counted from the bytes", f"{found:.9g}", reproduce)
    negative = [role for role, size in report["items"].items() if size < 0]
    if negative:
        raise ConformanceError("bytes of 0 or more a role", f"{report['items'][negative[0]]} {negative[0]}", reproduce)


def _is_packed(name: str, modules: dict[str, Any]) -> bool:
    owner, _, leaf = name.rpartition(".")
    return owner in modules and leaf != "bias"
