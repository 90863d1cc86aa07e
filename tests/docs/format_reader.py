"""A reader of lowbit checkpoints in numpy and JSON, written from docs/formats.md alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
PLAIN_DTYPES = {"U8": "u1", "I32": "<i4", "F16": "<f2", "F32": "<f4"}
BITS = {"plane1", "plane2", "signs", "salient_mask", "shared_plane", "salient_columns", "salient_groups"}
WIDTHS = {
    ("uniform", "codes"): "bits", ("uniform", "zero_points"): "bits",
    ("uniform-ordered", "codes"): "bits", ("uniform-ordered", "zero_points"): "bits",
    ("uniform-affine", "codes"): "bits",
    ("partial-binary", "codes"): "stored_bits", ("partial-binary", "salient_zero_points"): "high_bits",
    ("partial-binary-indexed", "codes"): "stored_bits", ("partial-binary-indexed", "salient_zero_points"): "high_bits",
    ("partial-binary-indexed", "gaps"): "gap_bits",
}  # fmt: skip
LAST_DIMENSION = {
    "plane1": "in", "plane2": "in", "signs": "in", "salient_mask": "in", "shared_plane": "in", "salient_columns": "in",
    "salient_groups": "grouped", "zero_points": "groups", "salient_zero_points": "out", "gaps": "entries",
}  # fmt: skip


def read_tensors(folder: Path) -> dict[str, Array]:
    """Read every tensor of the folder's safetensors files."""
    found: dict[str, Array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            raw = content[start + begin : start + end]
            if entry["dtype"] == "BF16":
                wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
                values = wide.view(np.float32)
            else:
                values = np.frombuffer(raw, PLAIN_DTYPES[entry["dtype"]])
            found[name] = values.reshape(entry["shape"])
    return found


def read_weights(folder: Path) -> dict[str, Array]:
    """Return every quantized weight, dequantized, float32 [out, in], by its name in the configuration."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "lowbit"
    assert config["checkpoint_version"] == 1
    tensors = read_tensors(folder)
    weights = {}
    for name, entry in config["modules"].items():
        assert entry["format_version"] == 1
        parameter, _, expert = name.rpartition(".")
        home = f"{parameter}_packed.{expert}" if entry["fused"] else name
        sentinel = tensors[parameter if entry["fused"] else f"{name}.weight"]
        assert sentinel.shape == (0,)
        prefix = home + "."
        parts = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        weights[name] = dequantized(entry, {"plain": plain, "interleaved": interleaved, "bit-planes": words}[
            entry["packer"]](entry, parts))  # fmt: skip
    return weights


def unpacked(rows: Array, length: int, width: int) -> Array:
    """Return codes of `width` bits, [..., length], from bytes [..., n]; least significant bit first."""
    bits = np.unpackbits(rows, axis=-1, bitorder="little")[..., : length * width] if rows.size else np.zeros(
        (*rows.shape[:-1], length * width), np.uint8)  # fmt: skip
    bits = bits.reshape(*rows.shape[:-1], length, width)
    return (bits << np.arange(width, dtype=np.uint8)).sum(-1, dtype=np.uint8)


def plain(entry: dict[str, Any], parts: dict[str, Array]) -> dict[str, Array]:
    """Undo the plain layout."""
    values = {}
    for name in entry["dtypes"]:
        width = 1 if name in BITS else entry["parameters"].get(WIDTHS.get((entry["format"], name), ""))
        if width is None:
            values[name] = parts[name]
            continue
        codes = "salient" if entry["format"].startswith("partial") else "in"
        length = entry["sizes"][LAST_DIMENSION.get(name, codes)]
        values[name] = unpacked(parts[name], length, width)
    return values


def words(entry: dict[str, Any], parts: dict[str, Array]) -> dict[str, Array]:
    """Undo the layout `bit-planes`."""
    planes = {name: unpacked(parts[name].view(np.uint8), entry["sizes"]["in"], 1) for name in ("plane1", "plane2")}
    return {**planes, "alpha1": parts["alpha1"], "alpha2": parts["alpha2"]}


def interleaved(entry: dict[str, Any], parts: dict[str, Array]) -> dict[str, Array]:
    """Undo the layout `interleaved`."""
    sizes, tiles = entry["sizes"], parts["tiles"]
    size = entry["parameters"]["group_size"]
    size = sizes["in"] if size == -1 else size
    n = -(-size // 32)
    kind = entry["dtypes"]["alpha1"] if entry["dtypes"]["alpha1"] == entry["dtypes"]["alpha2"] else "float32"
    bits = tiles[..., : 32 * n].reshape(*tiles.shape[:2], 2, n, 16)  # [tiles, groups, planes, words, rows]
    scales = np.ascontiguousarray(tiles[..., 32 * n :])
    if kind == "bfloat16":
        numbers = (scales.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = scales.view({"float16": "<f2", "float32": "<f4"}[kind])
    numbers = numbers.reshape(*tiles.shape[:2], 2, 16)  # [tiles, groups, planes, rows]
    result = {}
    for plane in (0, 1):
        rows = np.ascontiguousarray(bits[:, :, plane].transpose(0, 3, 1, 2))  # [tiles, rows, groups, words]
        wide = unpacked(rows.view(np.uint8), 32 * n, 1)[..., :size]
        result[f"plane{plane + 1}"] = wide.reshape(-1, wide.shape[2] * size)[: sizes["out"], : sizes["in"]]
        result[f"alpha{plane + 1}"] = (
            numbers[:, :, plane].transpose(0, 2, 1).reshape(-1, tiles.shape[1])[: sizes["out"]]
        )
    return result


def dequantized(entry: dict[str, Any], v: dict[str, Array]) -> Array:
    """Return the matrix, float32 [out, in]."""
    v = {name: values.astype(np.float32) if values.dtype.kind == "f" else values for name, values in v.items()}
    form, parameters, columns = entry["format"], entry["parameters"], np.arange(entry["sizes"]["in"])
    if form == "dense":
        return v["values"]
    if form == "residual-binary":
        return residual_binary(parameters["block_size"], v)
    size = parameters["group_size"]
    g = v["group_index"] if form == "uniform-ordered" else columns // (len(columns) if size == -1 else size)
    if form == "dual-binary":
        return v["alpha1"][:, g] * v["plane1"] + v["alpha2"][:, g] * v["plane2"]
    if form in ("uniform", "uniform-ordered"):
        return v["scales"][:, g] * (v["codes"].astype(np.float32) - v["zero_points"].astype(np.float32)[:, g])
    if form == "uniform-affine":
        return v["codes"].astype(np.float32) * v["scales"][:, g] + v["offsets"][:, g]
    return partial_binary(parameters, g, v)


def partial_binary(parameters: dict[str, Any], g: Array, v: dict[str, Array]) -> Array:
    """Return the matrix of both partial-binary formats."""
    signs = v["signs"]
    mask = v.get("salient_mask")
    if mask is None:
        flat, position, largest = np.zeros(signs.size, bool), 0, 2 ** parameters["gap_bits"] - 1
        for entry in v["gaps"].tolist():
            position += entry
            if entry < largest:
                flat[position] = True
                position += 1
        mask = flat.reshape(signs.shape)
    mask = mask.astype(bool)
    codes = signs.astype(np.float32) * np.float32(2 ** parameters["stored_bits"])
    codes[mask] += v["codes"].astype(np.float32)
    high = v["salient_scales"][:, None] * (codes - v["salient_zero_points"].astype(np.float32)[:, None])
    low = np.where(signs == 1, (v["means"] + v["scales"])[:, g], (v["means"] - v["scales"])[:, g])
    return np.where(mask, high, low)


def residual_binary(block_size: int, v: dict[str, Array]) -> Array:
    """Return the matrix of the residual-binary format, column by column."""
    signs, shared = (v[name].astype(np.float32) * 2 - 1 for name in ("signs", "shared_plane"))
    result, k = np.empty(signs.shape, np.float32), 0
    rows = np.arange(len(signs))
    for j in range(signs.shape[1]):
        b = j // block_size
        salient = v["salient_columns"][j]
        grouped = salient and v["salient_groups"].shape[1]
        z = (v["salient_groups"][:, k] if grouped else 0 * rows) if salient else v["shared_plane"][:, j]
        z = z.astype(int)
        m = v["means"][(2 if salient else 0) + z, rows, b] if len(v["means"]) else np.float32(0)
        if not salient:
            c = v["column_scales"][z, j] if len(v["column_scales"]) else np.float32(1)
            result[:, j] = m + (v["scales"][z, rows, b] * c) * signs[:, j]
            continue
        for q, sign in enumerate((signs, shared)):
            c = np.ones(len(rows), np.float32)
            if len(v["column_scales"]):
                second = v["salient_column_scales"][q, k] if grouped else v["column_scales"][q, j]
                c = np.where(z == 1, second, v["column_scales"][q, j])
            m = m + (v["scales"][2 + 2 * z + q, rows, b] * c) * sign[:, j]
        result[:, j] = m
        k += 1
    return result
