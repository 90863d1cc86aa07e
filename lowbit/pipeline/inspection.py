"""Reads what a checkpoint is from its files, without loading a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import CheckpointError
from lowbit.modeling.bits_report import BitsReport, count_bits
from lowbit.modeling.checkpoint_writer import PROVENANCE_FILE, RECIPE_FILE
from lowbit.modeling.module_entry import read_entry, require_stored
from lowbit.modeling.quantization_config import CHECKPOINT_VERSION, require_readable_version
from lowbit.models.checkpoint import ParentCheckpoint
from lowbit.models.streamed import build_skeleton, read_config
from lowbit.models.structure import find_decoder
from lowbit.pipeline.load import is_quantized


@dataclass(frozen=True)
class Inspection:
    """A checkpoint, described.

    Args:
        method: The method that made it.
        lowbit_version: The version that wrote it.
        parent_sha256: Identity of the parent.
        coverage: Which share of the decoder is quantized.
        formats: Format, version and packer of each quantized weight.
        calibration: The calibration's record, or `None`.
        bits: Bits, counted anew from the files.
        layers: Per-layer reports.
        recipe: The recipe's text.
    """

    method: str
    lowbit_version: str
    parent_sha256: str
    coverage: dict[str, Any]
    formats: list[tuple[str, int, str]]
    calibration: dict[str, Any] | None
    bits: BitsReport
    layers: list[dict[str, Any]]
    recipe: str


def inspect_checkpoint(folder: Path) -> Inspection:
    """Describe a checkpoint.

    Raises:
        CheckpointError: The folder is no lowbit checkpoint, or one of its files is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist")
    if not (folder / "config.json").is_file() or not is_quantized(folder):
        raise CheckpointError(f"{folder} is no lowbit checkpoint: its config.json has no quantization_config of lowbit")
    section = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    try:
        provenance = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
        recipe = (folder / RECIPE_FILE).read_text(encoding="utf-8")
        modules, written = section["modules"], BitsReport.model_validate(section["bits_report"])
        require_readable_version(section.get("checkpoint_version", CHECKPOINT_VERSION))
        entries = [read_entry(name, value) for name, value in modules.items()]
        require_stored(entries, ParentCheckpoint(folder).files)
        blocks_name = find_decoder(build_skeleton(read_config_without_quantization(folder))).name
        bits = count_bits(ParentCheckpoint(folder).files, modules, written.nominal_bits, blocks_name)
        return Inspection(
            method=section["method"],
            lowbit_version=section["lowbit_version"],
            parent_sha256=provenance["signature"]["recipe"]["model"]["sha256"],
            coverage=section["coverage"],
            formats=[(entry.spec.format, entry.spec.version, entry.packer) for entry in entries],
            calibration=section["calibration"],
            bits=bits,
            layers=provenance["layers"],
            recipe=recipe,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged: {type(error).__name__} {error}") from error


def read_config_without_quantization(folder: Path) -> Any:
    """Read a checkpoint's model configuration as if it were not quantized."""
    config = read_config(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config
