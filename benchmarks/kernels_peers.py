"""Other projects' products with few bits a weight, where they are installed and run on the machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from kernels_contenders import DTYPES, Absent, Call, Contender, Layer, calls_of, copy_of
from kernels_ggml import Ggml, GgmlWeight, library_folder
from torch import Tensor

from lowbit.errors import LowbitError

INT4_GROUP = 64
INTX_GROUP = 64
GEMLITE_GROUP = 64
INT4_CENTRE = 8
"""The code that stands for a group's zero point in torch's 4-bit product."""


def peer_contenders(layer: Layer, dtypes: list[str], ggml: Path | None) -> Iterator[Contender | Absent]:
    """Yield what is installed and runs, and why the rest does not.

    Args:
        layer: What to multiply by.
        dtypes: Of the activations.
        ggml: Folder with llama.cpp's libggml-cpu.so; `None` looks for an installed llama-cpp-python.
    """
    for name, found in (
        ("llama.cpp", partial(_ggml, layer, dtypes, ggml)),
        ("torch int4", partial(_int4, layer, dtypes)),
        ("torchao int2", partial(_torchao, layer, dtypes)),
        ("gemlite", partial(_gemlite, layer, dtypes)),
    ):
        try:
            yield from found()
        except Exception as error:  # a peer's own failure must not end the run
            yield Absent(name, f"not usable: {' '.join(str(error).split())[:200]}")


def peer_versions(ggml: Path | None, threads: int) -> dict[str, str]:
    """Return the versions of the peers that are there."""
    found = {}
    for package in ("torchao", "gemlite", "triton", "numba", "llvmlite"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    with suppress(LowbitError):
        found["ggml"] = Ggml(library_folder(ggml), threads).version
    return found


def _ggml(layer: Layer, dtypes: list[str], folder: Path | None) -> Iterator[Contender | Absent]:
    """Yield every 2-bit type in every layout of the CPU; activations are float32 and become 8 bits inside."""
    if layer.device.type != "cpu":
        yield Absent("llama.cpp", "measured on a CPU only")
        return
    library = Ggml(library_folder(folder), layer.threads)
    for name in library.types():
        codes, values = library.quantized(name, layer.dense)
        for layout, buffer in library.layouts().items():
            label = f"llama.cpp {name}" + ("" if layout == "CPU" else f" {layout.removeprefix('CPU_').lower()}")
            try:
                count = layer.copies(codes.nbytes)
                weights = [library.weight(name, codes, layer.dense.shape[1], buffer) for _ in range(count)]
            except LowbitError as error:
                if layout == "CPU":
                    yield Absent(label, str(error))
                continue
            calls = partial(_ggml_calls, weights)
            yield Contender(label, "peer", name, "float32", codes.nbytes, calls, partial(_same, values), exact=False)


def _ggml_calls(weights: list[GgmlWeight], x: Tensor) -> list[Call]:
    for weight in weights:
        weight.forget_calls()
    return [weight.call(x) for weight in weights]


def _same(values: Tensor) -> Tensor:
    return values


def _int4(layer: Layer, dtypes: list[str]) -> Iterator[Contender | Absent]:
    """Yield torch's own 4-bit product for CPUs, which torchao builds upon: twice the bits."""
    if layer.device.type != "cpu":
        yield Absent("torch int4", "measured on a CPU only")
        return
    out, length = layer.dense.shape
    if length % INT4_GROUP or out % 16:
        yield Absent("torch int4", f"needs columns in groups of {INT4_GROUP} and rows in sixteens")
        return
    codes, steps, lows = uniform_codes(layer.dense, 4, INT4_GROUP)
    zeros = lows + INT4_CENTRE * steps
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    for dtype in dtypes:
        stored = torch.stack([steps, zeros], -1).transpose(0, 1).to(DTYPES[dtype]).contiguous()  # [groups, out, 2]
        step, zero = (part.T.float() for part in stored.unbind(-1))
        size = packed.nbytes + stored.nbytes
        calls = calls_of(
            [
                partial(_int4_product, copy_of(packed, layer.device), copy_of(stored, layer.device))
                for _ in range(layer.copies(size))
            ]
        )
        matrix = partial(_from_codes, codes, step, zero - INT4_CENTRE * step)
        yield Contender("torch int4", "peer", f"int4, group {INT4_GROUP}", dtype, size, calls, matrix)


def _int4_product(packed: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, INT4_GROUP, scales)
    return product


def _torchao(layer: Layer, dtypes: list[str]) -> Iterator[Contender | Absent]:
    """Yield torchao's 2-bit weight-only layer: outside ARM its codes take a byte each and are dequantized each time."""
    if importlib.util.find_spec("torchao") is None:
        yield Absent("torchao int2", "torchao is not installed")
        return
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    out, length = layer.dense.shape
    for dtype in dtypes:
        made = []
        while not made or len(made) < layer.copies(_stored_bytes(made[0].weight)):
            module = torch.nn.Linear(length, out, bias=False, dtype=DTYPES[dtype], device=layer.device)
            module.requires_grad_(False).weight.copy_(layer.dense)
            quantize_(module, IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerGroup(INTX_GROUP)))
            made.append(module)
        weights, matrix = f"int2 in bytes, group {INTX_GROUP}", partial(_dequantized, made[0])
        size = _stored_bytes(made[0].weight)
        yield Contender("torchao int2", "peer", weights, dtype, size, calls_of(made), matrix, exact=False)


def _stored_bytes(weight: Any) -> int:
    return sum(getattr(weight, name).nbytes for name in weight.tensor_data_names)


def _dequantized(module: torch.nn.Linear) -> Tensor:
    weight: Any = module.weight
    dense: Tensor = weight.dequantize().float().cpu()
    return dense


def _gemlite(layer: Layer, dtypes: list[str]) -> Iterator[Contender | Absent]:
    """Yield gemlite's 2-bit product, and the sum of two of its 1-bit products as dual-binary weights would need."""
    if layer.device.type != "cuda":
        yield Absent("gemlite", "runs on CUDA only")
        return
    if importlib.util.find_spec("gemlite") is None:
        yield Absent("gemlite", "not installed")
        return
    for dtype in ("float16", "bfloat16"):
        if dtype in dtypes:
            yield _gemlite_contender(layer, dtype, 2, 1)
            yield _gemlite_contender(layer, dtype, 1, 2)


def _gemlite_contender(layer: Layer, dtype: str, bits: int, planes: int) -> Contender:
    codes, steps, lows = uniform_codes(layer.dense, bits, GEMLITE_GROUP)
    steps = steps.to(DTYPES[dtype])
    zeros = (-lows / steps.float()).to(DTYPES[dtype])
    made = [_gemlite_layers(layer, dtype, bits, planes, codes, steps, zeros)]
    size = planes * (codes.numel() * bits // 8 + steps.nbytes + zeros.nbytes)
    made += [_gemlite_layers(layer, dtype, bits, planes, codes, steps, zeros) for _ in range(1, layer.copies(size))]
    matrix = partial(_gemlite_matrix, codes, steps.float(), zeros.float(), planes)
    name, weights = f"gemlite {planes} x {bits} bit", f"{bits} bit, group {GEMLITE_GROUP}"
    return Contender(name, "peer", weights, dtype, size, calls_of(made), matrix, exact=False)


def _gemlite_matrix(codes: Tensor, steps: Tensor, zeros: Tensor, planes: int) -> Tensor:
    return planes * _from_codes(codes, steps, -zeros * steps)


def _gemlite_layers(
    layer: Layer, dtype: str, bits: int, planes: int, codes: Tensor, steps: Tensor, zeros: Tensor
) -> Callable[[Tensor], Tensor]:
    from gemlite import DType, GemLiteLinear

    kind = DType.FP16 if dtype == "float16" else DType.BF16
    out, length = codes.shape
    made = []
    for _ in range(planes):
        linear = GemLiteLinear(
            bits, group_size=GEMLITE_GROUP, in_features=length, out_features=out, input_dtype=kind, output_dtype=kind
        )
        linear.pack(codes.to(layer.device), steps.to(layer.device), zeros.to(layer.device), None)
        made.append(linear)

    def product(x: Tensor) -> Tensor:
        result: Tensor = made[0](x)
        for other in made[1:]:
            result = result + other(x)
        return result

    return product


def uniform_codes(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round to a uniform grid from the least to the largest weight of each group.

    Args:
        weight: float32 [out, in].
        bits: Bits a code.
        group: Columns a group; a divisor of the row.

    Returns:
        Codes, uint8 [out, in]; steps and least values, float32 [out, groups].
    """
    grouped = weight.unflatten(1, (-1, group))  # [out, groups, group]
    lows, highs = grouped.amin(-1), grouped.amax(-1)
    steps = ((highs - lows) / (2**bits - 1)).clamp(min=1e-8)
    codes = ((grouped - lows.unsqueeze(-1)) / steps.unsqueeze(-1)).round_().clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8).flatten(1), steps, lows


def _from_codes(codes: Tensor, steps: Tensor, lows: Tensor) -> Tensor:
    grouped = codes.unflatten(1, (steps.shape[1], -1)).float()
    return (grouped * steps.unsqueeze(-1) + lows.unsqueeze(-1)).flatten(1)
