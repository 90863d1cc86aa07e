"""Puts the finished blocks of a journal together as a checkpoint folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lowbit.durable import flush_folder, make_directory, write_json, write_tensors, write_text, write_whole
from lowbit.errors import LowbitError
from lowbit.modeling.bits_report import BitsReport, count_bits
from lowbit.modeling.file_digests import digests_of
from lowbit.modeling.journal import Journal
from lowbit.modeling.quantization_config import CHECKPOINT_VERSION, LowbitConfig
from lowbit.models.checkpoint import INDEX_FILE, SINGLE_FILE, TOKENIZER_PATTERNS
from lowbit.models.configuration import read_config_json
from lowbit.models.small_files import require_inside
from lowbit.models.streamed import StreamedModel

RECIPE_FILE = "lowbit_recipe.yaml"
PROVENANCE_FILE = "lowbit_provenance.json"


@dataclass(frozen=True)
class Provenance:
    """What a checkpoint says of its making; nothing in it changes from run to run.

    Args:
        recipe: The part of the recipe that decides the checkpoint.
        signature: What a run must share with the journal to continue it.
        calibration: Name, size, seed and hash of the calibration tokens; `None` without calibration.
        coverage: Which share of the decoder is quantized.
        parent: What the model is called, for the model card.
        training: Tokens, learning curves and diagnostics of the training; `None` if nothing was trained.
    """

    recipe: Mapping[str, Any]
    signature: Mapping[str, Any]
    calibration: Mapping[str, Any] | None
    coverage: Mapping[str, Any]
    parent: str
    training: Mapping[str, Any] | None = None


def write_checkpoint(
    source: StreamedModel, journal: Journal, output: Path, provenance: Provenance, max_shard_size: int
) -> BitsReport:
    """Assemble a checkpoint beside its place and rename the whole folder into it.

    Args:
        source: The parent, for everything outside the decoder blocks.
        journal: Holds every block.
        output: Where the folder appears; it must not exist, or be empty.
        provenance: What the checkpoint says of its making.
        max_shard_size: Bytes after which a new safetensors file begins.

    Returns:
        The bits, counted from the written files.

    Raises:
        LowbitError: The place cannot be written or the disk is full; the journal stays, and no half folder appears.
    """
    staging = journal.path / "checkpoint"
    shutil.rmtree(staging, ignore_errors=True)
    make_directory(staging)
    try:
        bits = _assemble(source, journal, staging, provenance, max_shard_size)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # On a full disk, it is what fills it.
        raise
    _publish(staging, output)
    return bits


def _assemble(
    source: StreamedModel, journal: Journal, staging: Path, provenance: Provenance, max_shard_size: int
) -> BitsReport:
    """Write every file of the checkpoint into a folder."""
    reports = journal.reports()
    modules = {name: entry for report in reports for name, entry in report["modules"].items()}
    layers = [layer for report in reports for layer in report["layers"]]
    files = _write_weights(source, journal, staging, len(reports), max_shard_size)
    bits = count_bits(files, modules, _mean_nominal(layers), source.decoder.name)
    _write_config(source, staging, modules, bits, digests_of(files), provenance)
    _write_texts(source.checkpoint.folder, staging)
    write_text(staging / RECIPE_FILE, yaml.safe_dump(dict(provenance.recipe), sort_keys=True, allow_unicode=True))
    told = {"signature": provenance.signature, "layers": layers}
    write_json(
        staging / PROVENANCE_FILE,
        told if provenance.training is None else {**told, "training": provenance.training},
    )
    write_text(staging / "README.md", _model_card(provenance, bits))
    return bits


def _write_weights(source: StreamedModel, journal: Journal, staging: Path, blocks: int, limit: int) -> list[Path]:
    shards = list(_shards(source, journal, blocks, limit))
    if len(shards) == 1:
        names = [SINGLE_FILE]
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map: dict[str, str] = {}
    total = 0
    for name, members in zip(names, shards, strict=True):
        with ExitStack() as stack:
            tensors = {key: tensor for member in members for key, tensor in _tensors(source, journal, member, stack)}
            write_tensors(staging / name, tensors)
            weight_map.update(dict.fromkeys(sorted(tensors), name))
            total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        write_json(staging / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return [staging / name for name in names]


def _shards(source: StreamedModel, journal: Journal, blocks: int, limit: int) -> Iterator[list[int | None]]:
    """Yield the members of each file: `None` for everything outside the blocks, else a block's position."""
    outside = sum(tensor.nbytes for tensor in source.outside().values())
    members: list[int | None] = [None]
    size = outside
    for index in range(blocks):
        block = journal.tensors_file(index).stat().st_size
        if size + block > limit:
            yield members
            members, size = [], 0
        members.append(index)
        size += block
    yield members


def _tensors(
    source: StreamedModel, journal: Journal, member: int | None, stack: ExitStack
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that are mapped from their files, not copied to memory."""
    if member is None:
        yield from source.outside().items()
        return
    yield from journal.stored_tensors(member, stack).items()


def _mean_nominal(layers: list[dict[str, Any]]) -> float:
    weights = sum(layer["weights"] for layer in layers)
    return float(sum(layer["weights"] * layer["nominal_bits"] for layer in layers) / weights)


def _write_config(
    source: StreamedModel,
    staging: Path,
    modules: dict[str, Any],
    bits: BitsReport,
    digests: dict[str, str],
    provenance: Provenance,
) -> None:
    recipe = provenance.recipe
    quantizer = recipe.get("quantizer") or {}
    config = LowbitConfig(
        modules=modules,
        checkpoint_version=CHECKPOINT_VERSION,
        lowbit_version=provenance.signature["versions"]["lowbit"],
        method=recipe["method"],
        bits=bits.nominal_bits,
        group_size=quantizer.get("group_size"),
        quantizer=quantizer,
        packer=recipe["packer"],
        modules_to_not_convert=recipe["modules_to_not_convert"],
        calibration=provenance.calibration,
        coverage=provenance.coverage,
        bits_report=bits.model_dump(),
        files_sha256=digests,
        recipe_sha256=provenance.signature["recipe_sha256"],
    )
    written: dict[str, Any] = read_config_json(source.checkpoint.folder)
    written["quantization_config"] = config.to_dict()
    write_json(staging / "config.json", written)


def _write_texts(folder: Path, staging: Path) -> None:
    """Copy tokenizer and generation settings as they are, and code that comes with the model."""
    patterns = (*TOKENIZER_PATTERNS, "generation_config.json", "*.py")
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        require_inside(file, folder)
        target = staging / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        write_whole(target, lambda temporary, source=file: shutil.copyfile(source, temporary))  # type: ignore[misc]


def _model_card(provenance: Provenance, bits: BitsReport) -> str:
    method = provenance.recipe["method"]
    return f"""---
library_name: transformers
tags: [lowbit, quantized]
---
# {provenance.parent}, quantized by lowbit ({method})

{bits.nominal_bits:.2f} bits a weight nominal, {bits.quantized_bits:.3f} measured in the quantized layers,
{bits.whole_file_bits:.3f} over the whole file ({bits.file_bytes} bytes).

```python
import lowbit  # registers the quantizer with transformers; without it, loading fails
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

`{RECIPE_FILE}` makes this checkpoint again; `{PROVENANCE_FILE}` holds hashes, versions and per-layer errors.
"""


def _publish(staging: Path, output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(output)
        flush_folder(output.parent)
    except OSError as error:
        raise LowbitError(
            f"the checkpoint cannot be moved to {output}: {error}; it lies finished in {staging.parent}"
        ) from error
