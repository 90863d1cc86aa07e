"""Writes a checkpoint again in the layout of another packer: the same weights, bit by bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lowbit.contracts import PackedWeight
from lowbit.documents import read_json
from lowbit.durable import flush_folder, make_directory, one_at_a_time, write_json, write_tensors, write_whole
from lowbit.errors import LowbitError
from lowbit.modeling.bits_report import BitsReport, count_bits
from lowbit.modeling.checkpoint_writer import PROVENANCE_FILE
from lowbit.modeling.file_digests import FILES_SHA256, digests_of
from lowbit.modeling.layouts import get_packer, layout_of, packer_for, unpack
from lowbit.modeling.module_entry import LoadedEntry, entry_for, packed_module, read_entry, require_stored
from lowbit.models.checkpoint import INDEX_FILE, ParentCheckpoint, read_header
from lowbit.models.configuration import read_config_json
from lowbit.models.small_files import require_inside
from lowbit.models.streamed import build_skeleton
from lowbit.models.structure import find_decoder
from lowbit.pipeline.inspection import inspect_checkpoint, read_config_without_quantization

REPACKED = "repacked"
STAGING_SUFFIX = ".repacking"


def repack(checkpoint: Path, output: Path, packer: str) -> BitsReport:
    """Write a checkpoint with its weights in another layout, one file at a time.

    Weights of formats that the packer does not serve get the plain layout.

    Args:
        checkpoint: A lowbit checkpoint.
        output: Where the new folder appears; it must not exist.
        packer: Name of the packer; `plain` is the generic one.

    Returns:
        The bits of the new files.

    Raises:
        LowbitError: The checkpoint is damaged, the packer is unknown, another process writes the same output, or the
            place is taken or cannot be written.
    """
    inspect_checkpoint(checkpoint)
    get_packer(packer)
    if checkpoint.resolve() in output.resolve().parents:
        raise LowbitError(f"{output} lies inside the checkpoint; name a folder elsewhere")
    if output.exists():
        raise LowbitError(f"{output} exists; name a folder that does not")
    make_directory(output.parent)
    lock = output.with_name(output.name + ".lock")
    with one_at_a_time(lock, f"writing {output}", wait=False):
        try:
            return _repack_alone(checkpoint, output, packer)
        finally:
            lock.unlink(missing_ok=True)


def _repack_alone(checkpoint: Path, output: Path, packer: str) -> BitsReport:
    """Write every file into a folder beside the output, and rename it."""
    if output.exists():
        raise LowbitError(f"{output} exists; name a folder that does not")
    source = ParentCheckpoint(checkpoint)
    section = read_config_json(checkpoint)["quantization_config"]
    entries = {name: read_entry(name, value) for name, value in section["modules"].items()}
    require_stored(entries.values(), source.files)
    staging = output.with_name(output.name + STAGING_SUFFIX)
    shutil.rmtree(staging, ignore_errors=True)  # What a killed run left.
    make_directory(staging)
    try:
        modules = _write_weights(source, entries, staging, packer)
        bits = _finish(checkpoint, staging, section, modules, packer)
        staging.rename(output)
        flush_folder(output.parent)
    except OSError as error:
        raise LowbitError(f"{output} cannot be written: {error}; nothing half-written was left") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return bits


def _write_weights(
    source: ParentCheckpoint, entries: Mapping[str, LoadedEntry], staging: Path, packer: str
) -> dict[str, Any]:
    """Write every file of the source with its weights in the new layout, and return the new module entries."""
    old = {
        f"{packed_module(name, entry.fused)}.{part}": name
        for name, entry in entries.items()
        for part in layout_of(entry.spec, entry.packer)
    }
    modules: dict[str, Any] = {}
    weight_map: dict[str, str] = {}
    total = 0
    for file in source.files:
        written: dict[str, Tensor] = {}
        for key in read_header(file):
            name = old.get(key)
            if name is None:
                written[key] = source.tensor(key)
            elif name not in modules:
                packed = _convert(source, entries[name], packer)
                modules[name] = entry_for(packed, entries[name].fused).model_dump()
                home = packed_module(name, entries[name].fused)
                written |= {f"{home}.{part}": tensor for part, tensor in packed.tensors.items()}
        write_tensors(staging / file.name, written)
        weight_map |= dict.fromkeys(sorted(written), file.name)
        total += sum(tensor.nbytes for tensor in written.values())
    if len(source.files) > 1:
        write_json(staging / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return {name: modules[name] for name in entries}


def _convert(source: ParentCheckpoint, entry: LoadedEntry, packer: str) -> PackedWeight:
    home = packed_module(entry.name, entry.fused)
    parts = layout_of(entry.spec, entry.packer)
    packed = PackedWeight(entry.spec, entry.packer, {part: source.tensor(f"{home}.{part}") for part in parts})
    return packer_for(entry.spec.format, packer).pack(unpack(packed))


def _finish(
    checkpoint: Path, staging: Path, section: Mapping[str, Any], modules: Mapping[str, Any], packer: str
) -> BitsReport:
    """Write configuration and provenance, and copy the rest."""
    config = read_config_json(checkpoint)
    blocks = find_decoder(build_skeleton(read_config_without_quantization(checkpoint))).name
    files = sorted(staging.glob("*.safetensors"))
    bits = count_bits(files, modules, section["bits_report"]["nominal_bits"], blocks)
    config["quantization_config"] = {
        **section,
        "modules": dict(modules),
        "packer": {"name": packer},
        "bits_report": bits.model_dump(),
        FILES_SHA256: digests_of(files),
    }
    write_json(staging / "config.json", config)
    provenance = read_json(checkpoint / PROVENANCE_FILE, "provenance", 2**28)
    write_json(staging / PROVENANCE_FILE, {**provenance, REPACKED: {"from": section["packer"], "to": {"name": packer}}})
    for file in sorted(checkpoint.rglob("*")):
        target = staging / file.relative_to(checkpoint)
        if file.is_file() and not target.exists() and file.suffix != ".safetensors":
            require_inside(file, checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, lambda temporary, source=file: shutil.copyfile(source, temporary))  # type: ignore[misc]
    return bits
