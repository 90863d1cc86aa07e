"""Quantizes a model with auto-round, inside auto-round's own environment, and writes plain dequantized weights.

    python peer_autoround_worker.py MODEL TOKENS.npz OUTPUT SETTINGS

SETTINGS is a JSON object of arguments of `auto_round.AutoRound`; what it leaves out keeps auto-round's defaults. TOKENS
holds the calibration sequences, int64 [samples, length], under the name `tokens`. OUTPUT gets three things: `packed`,
the checkpoint as auto-round stores it; `model`, a float32 checkpoint whose quantized weights are dequantized from
the codes, scales and zero points of that file, all else being the parent's; and `report.json`.

A layer that auto-round leaves as it is keeps the parent's weights and is counted with the bits that auto-round stores.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

WORD_BITS = 32
PACKED_PARTS = ("qweight", "qzeros", "scales")
GPTQ_FORMAT = "auto_round:auto_gptq"
FORMATS = {GPTQ_FORMAT: 1, "auto_round": 0}
"""What each layout leaves out of a stored zero point."""
PACKAGES = ("auto-round", "torch", "transformers", "numpy", "safetensors", "accelerate")
RESOLVED = ("iters", "lr", "minmax_lr", "momentum", "nblocks", "enable_minmax_tuning", "enable_alg_ext", "enable_adam")
OWN_FILES = (".safetensors", ".bin", ".index.json")


def unpack(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Return the unsigned codes of int32 words; the lowest bits of a word come first along `dim`."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    codes = (words.movedim(dim, -1).unsqueeze(-1) >> shifts) & (2**bits - 1)  # [..., words, codes of a word]
    return codes.flatten(-2).movedim(-1, dim)


def dequantize(layer: dict[str, torch.Tensor], bits: int, group_size: int, missing: int) -> torch.Tensor:
    """Return the float32 weight [out, in] of a stored layer.

    Args:
        layer: `qweight` int32 [in * bits / 32, out], `qzeros` int32 [groups, out * bits / 32] and `scales` float16
            [groups, out].
        bits: Of a code.
        group_size: Inputs that share a scale and a zero point.
        missing: What the layout leaves out of a stored zero point.
    """
    codes = unpack(layer["qweight"], bits, 0)  # [in, out]
    zeros = unpack(layer["qzeros"], bits, 1) + missing  # [groups, out]
    group = torch.arange(codes.shape[0]) // group_size  # [in]
    return (layer["scales"].float()[group] * (codes - zeros[group])).T.contiguous()


def stored_layers(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the packed tensors of every quantized layer, by layer and part."""
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return {name: {part: tensors[f"{name}.{part}"] for part in PACKED_PARTS} for name in names}


def quantize(model: str, tokens: torch.Tensor, settings: dict[str, Any], packed: Path) -> dict[str, Any]:
    """Run auto-round, store its checkpoint in `packed`, and return what it computed with.

    Args:
        model: Folder of the parent.
        tokens: int64 [samples, length].
        settings: Arguments of `AutoRound`.
        packed: Where the checkpoint goes.
    """
    from auto_round import AutoRound  # what only unpacks and counts works without it

    samples, length = tokens.shape
    started = time.monotonic()
    rounding = AutoRound(model, dataset=list(tokens.split(1)), nsamples=samples, seqlen=length, **settings)
    quantized, _ = rounding.quantize()
    simulated = {
        f"{name}.weight": module.weight.detach().float().clone()
        for name, module in quantized.named_modules()
        if hasattr(module, "scale") and isinstance(module, torch.nn.Linear)
    }
    config = rounding.quantize_config
    resolved = {name: getattr(config, name) for name in RESOLVED} | {
        "symmetric": config.scheme.sym,
        "group_size": config.scheme.group_size,
        "bits": config.scheme.bits,
        "computed_in": str(rounding.model_context.amp_dtype).removeprefix("torch."),
        "torch_compile": bool(rounding.enable_torch_compile),
    }
    rounding.save_quantized(str(packed), format="auto_round")
    return {"resolved": resolved, "seconds": time.monotonic() - started, "simulated": simulated}


def dequantized_weights(packed: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str]:
    """Return the float32 weights of the quantized layers, everything stored, and the name of the layout."""
    config = json.loads((packed / "quantization_config.json").read_text(encoding="utf-8"))
    layout = config["packing_format"]
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(packed.glob("*.safetensors")):
        tensors |= load_file(file)
    weights = {
        f"{name}.weight": dequantize(layer, config["bits"], config["group_size"], FORMATS[layout])
        for name, layer in stored_layers(tensors).items()
    }
    return weights, tensors, layout


def require_equal(stored: dict[str, torch.Tensor], simulated: dict[str, torch.Tensor]) -> None:
    """Check that the stored layers are those that auto-round optimized, up to rounding to bfloat16.

    Raises:
        SystemExit: A layer or a weight differs.
    """
    if stored.keys() != simulated.keys():
        sys.exit(f"stored layers differ from the quantized ones: {sorted(stored.keys() ^ simulated.keys())}")
    for name, weight in stored.items():
        error = (weight - simulated[name]).abs().max().item()
        if not error <= 2**-8 * weight.abs().max().item():
            sys.exit(f"{name} as stored differs by {error} from what auto-round computed")


def write_model(parent: Path, weights: dict[str, torch.Tensor], output: Path) -> list[tuple[str, int]]:
    """Write the parent in float32 with the given weights in it.

    Returns:
        Name and size of the weight of every linear layer but the output projection.
    """
    model = AutoModelForCausalLM.from_pretrained(str(parent), dtype=torch.float32)
    head = model.get_output_embeddings()
    linear = [
        (f"{name}.weight", module.weight.numel())
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)
    model.save_pretrained(str(output))
    for file in parent.iterdir():
        if file.is_file() and not file.name.endswith(OWN_FILES) and not (output / file.name).exists():
            shutil.copyfile(file, output / file.name)
    return linear


def count_bits(
    tensors: dict[str, torch.Tensor], linear: list[tuple[str, int]], file_bytes: int, nominal: int
) -> dict[str, Any]:
    """Count the bits that auto-round stores a weight, three ways, and those that constant zero points would save.

    Args:
        tensors: Everything stored.
        linear: The weights of the decoder's linear layers and their sizes.
        file_bytes: Of the safetensors files.
        nominal: Bits of a code.
    """
    layers = stored_layers(tensors)
    kept = [name for name, _ in linear if name in tensors]
    packed_bytes = sum(part.nbytes for layer in layers.values() for part in layer.values())
    zeros = sum(layer["qzeros"].nbytes for layer in layers.values())
    weights = sum(size for _, size in linear)
    quantized = sum(size for name, size in linear if name.removesuffix(".weight") in layers)
    packed_names = {f"{name}.{part}" for name in layers for part in PACKED_PARTS}
    others = sum(tensor.numel() for name, tensor in tensors.items() if name not in packed_names)
    total = packed_bytes + sum(tensors[name].nbytes for name in kept)
    return {
        "nominal": nominal,
        "linear": 8 * total / weights,
        "linear_without_zero_points": 8 * (total - zeros) / weights,
        "file": 8 * file_bytes / (quantized + others),
        "quantized_weights": quantized,
        "linear_weights": weights,
        "unquantized_layers": kept,
    }


def main(parent: Path, token_file: Path, output: Path, settings: dict[str, Any]) -> None:
    """Quantize, dequantize and report."""
    torch.manual_seed(settings["seed"])
    with np.load(token_file, allow_pickle=False) as content:
        tokens = torch.from_numpy(content["tokens"])
    packed = output / "packed"
    run = quantize(str(parent), tokens, settings, packed)
    weights, tensors, layout = dequantized_weights(packed)
    require_equal(weights, run["simulated"])
    linear = write_model(parent, weights, output / "model")
    file_bytes = sum(file.stat().st_size for file in packed.glob("*.safetensors"))
    report = {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": settings,
        "resolved": run["resolved"],
        "seconds": run["seconds"],
        "threads": torch.get_num_threads(),
        "tokens": list(tokens.shape),
        "layout": layout,
        "bits": count_bits(tensors, linear, file_bytes, run["resolved"]["bits"]),
    }
    (output / "report.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]))
