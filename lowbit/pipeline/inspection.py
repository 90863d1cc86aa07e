"""Reads what a checkpoint is from its files, and checks that they are what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lowbit.documents import MOST_YAML_BYTES, parse_yaml, read_json, read_text
from lowbit.errors import CheckpointError, LowbitError
from lowbit.modeling.bits_report import BitsReport, count_bits
from lowbit.modeling.checkpoint_writer import PROVENANCE_FILE, RECIPE_FILE
from lowbit.modeling.file_digests import FILES_SHA256, require_unchanged
from lowbit.modeling.module_entry import read_entry, require_stored
from lowbit.modeling.quantization_config import CHECKPOINT_VERSION, require_readable_version
from lowbit.models.checkpoint import ParentCheckpoint
from lowbit.models.configuration import read_config_json
from lowbit.models.small_files import require_inside
from lowbit.models.streamed import build_skeleton, read_config
from lowbit.models.structure import find_decoder
from lowbit.pipeline.load import is_quantized
from lowbit.untrusted import printable

Name = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


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


class _Coverage(BaseModel):
    model_config = ConfigDict(strict=True)

    share: float = Field(ge=0, le=1)
    quantized_targets: int = Field(ge=0)
    skipped: dict[Name, Any] | list[Name]
    other_matrices: dict[Name, Any] | list[Name]


class _Section(BaseModel):
    """What an inspection reads of `quantization_config`; keys that it does not know may be there."""

    model_config = ConfigDict(strict=True)

    method: Name
    lowbit_version: Name
    modules: dict[Name, Any] = Field(min_length=1)
    coverage: _Coverage
    calibration: dict[Name, Name | int | float | bool | None] | None


class _Layer(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Name
    relative_error: float
    nominal_bits: float
    diagnostics: dict[Name, float]


class _ParentHash(BaseModel):
    sha256: Name


class _SignedRecipe(BaseModel):
    model: _ParentHash


class _Signature(BaseModel):
    recipe: _SignedRecipe


class _Provenance(BaseModel):
    model_config = ConfigDict(strict=True)

    signature: _Signature
    layers: list[_Layer]


def inspect_checkpoint(folder: Path) -> Inspection:
    """Describe a checkpoint.

    Raises:
        CheckpointError: The folder is no lowbit checkpoint, or one of its files is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist")
    if not (folder / "config.json").is_file() or not is_quantized(folder):
        raise CheckpointError(f"{folder} is no lowbit checkpoint: its config.json has no quantization_config of lowbit")
    section = read_config_json(folder)["quantization_config"]
    for name in (PROVENANCE_FILE, RECIPE_FILE):
        require_inside(folder / name, folder)
    try:
        provenance = read_json(folder / PROVENANCE_FILE, "provenance", 2**28)
        recipe = _read_recipe(folder / RECIPE_FILE)
        _Section.model_validate(section)
        _Provenance.model_validate(provenance)
        modules, written = section["modules"], BitsReport.model_validate(section["bits_report"])
        require_readable_version(section.get("checkpoint_version", CHECKPOINT_VERSION))
        entries = [read_entry(name, value) for name, value in modules.items()]
        files = ParentCheckpoint(folder).files
        require_stored(entries, files)
        require_unchanged(files, section.get(FILES_SHA256))
        blocks_name = find_decoder(build_skeleton(read_config_without_quantization(folder))).name
        bits = count_bits(files, modules, written.nominal_bits, blocks_name)
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
    except CheckpointError:
        raise
    except (LowbitError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        told = printable(" ".join(str(error).split()))[:500]
        raise CheckpointError(f"{folder} is damaged: {type(error).__name__} {told}") from error


def _read_recipe(file: Path) -> str:
    """Return a checkpoint's recipe as it is written, once it is sure to be one."""
    text = read_text(file, "recipe", MOST_YAML_BYTES)
    if not isinstance(parse_yaml(text, f"recipe {file}"), dict):
        raise CheckpointError(f"recipe {file} must be a mapping of keys such as method and quantizer")
    return text


def read_config_without_quantization(folder: Path) -> Any:
    """Read a checkpoint's model configuration as if it were not quantized."""
    config = read_config(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config
