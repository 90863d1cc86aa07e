"""Reads `config.json` with suspicion: before transformers builds anything of it, and against what the files hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from lowbit import untrusted
from lowbit.errors import CheckpointError, LowbitError
from lowbit.models.checkpoint import INDEX_FILE, SINGLE_FILE, ParentCheckpoint
from lowbit.models.small_files import require_inside

CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
MOST_LABELS = 2**16
"""transformers makes a name for each as soon as it reads the configuration."""
MOST_CONFIG_BYTES = 2**28
"""A checkpoint of 70,000 experts' matrices describes each of them in it."""
MOST_PARTS = 4096
"""Layers or experts of a model whose files hold fewer tensors; each takes time and memory as soon as it is built."""
LARGEST_SIZE = 2**31 - 1
MOST_BUFFER_BYTES = 2**32
"""Of tables that a model computes when it is built, such as rotary embeddings and masks."""
FREE_ELEMENTS = 2**24
"""Parameters that a model may have beyond what its files account for."""
_PARTS = re.compile(r"(^|_)(layers?|experts?)(_|$)|^(num|n)_(.*_)?(blocks?|stages?|codebooks?)$|(^|_)depths?$")
_KERNELS = re.compile(r"^_?(attn|experts)_implementation")
_LENGTHS = re.compile(r"length|tokens?$|_id$")


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return what a model's config.json holds.

    Raises:
        LowbitError: It is absent, damaged, too large, leads out of the folder, or has sizes that no model has.
    """
    file = folder / CONFIG_FILE
    require_inside(file, folder)
    try:
        config = untrusted.read_json(file, MOST_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        told = f"{folder} has no readable model configuration: {file.name} cannot be read: {error}"
        raise LowbitError(untrusted.printable(told)) from error
    if not isinstance(config, dict):
        raise LowbitError(f"{folder} has no readable model configuration: {file.name} must hold a JSON object")
    for key, value in _integers({key: value for key, value in config.items() if key != "quantization_config"}):
        if not -LARGEST_SIZE <= value <= LARGEST_SIZE and not _LENGTHS.search(key):
            shown = " ".join(untrusted.printable(key[:100]).split())
            raise CheckpointError(f"{file}: {shown} is {value:.3g}, which no model has")
    _require_whole_model(folder, config)
    return config


def _require_whole_model(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what makes transformers read other weights than those beside config.json, or name labels without end."""
    file = folder / CONFIG_FILE
    if "transformers_weights" in config:
        raise CheckpointError(f"{file}: transformers_weights names other files of weights than lowbit reads; delete it")
    if (folder / ADAPTER_FILE).exists():
        raise CheckpointError(f"{folder} holds an adapter ({ADAPTER_FILE}): merge it with its model and give the whole")
    for key, value in _texts(config):
        if _KERNELS.search(key) and ("/" in value or ":" in value):
            raise CheckpointError(f"{file}: {key} names compiled code of a hub, which is not fetched; delete the key")
    labels = max((value for key, value in _integers(config) if key == "num_labels"), default=0)
    if labels > MOST_LABELS:
        raise CheckpointError(f"{file}: num_labels is {labels:.3g}; at most {MOST_LABELS} are read")


def require_buildable(folder: Path) -> None:
    """Compare the numbers of layers and experts in config.json with the files' tensors, before a model is built.

    Raises:
        LowbitError: There are far more layers than tensors, so that building them would take hours; or a file is
            damaged.
    """
    config = read_config_json(folder)
    if not any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        return
    most = max(MOST_PARTS, len(list(ParentCheckpoint(folder).keys())))
    for key, value in _integers({key: value for key, value in config.items() if key != "quantization_config"}):
        if value > most and _PARTS.search(key):
            shown = " ".join(untrusted.printable(key[:100]).split())
            raise CheckpointError(f"{folder / CONFIG_FILE}: {shown} is {value}, but the files hold few tensors")


def require_accounted(model: nn.Module, checkpoint: ParentCheckpoint, bits_packed: bool) -> None:
    """Compare a model on the meta device with the size of its files, before any of its tensors is made.

    Args:
        model: The model that config.json describes.
        checkpoint: Its files.
        bits_packed: Whether a stored byte may stand for many weights.

    Raises:
        CheckpointError: The model is far larger than the files.
    """
    stored = sum(checkpoint.tensor_bytes(key) for key in checkpoint.keys())  # noqa: SIM118 - it is no mapping
    most = stored * (64 if bits_packed else 4) + FREE_ELEMENTS
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > most:
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG_FILE} describes {parameters:.3g} parameters, but the files hold "
            f"{stored} bytes; the two do not belong together"
        )


def require_small_buffers(model: nn.Module) -> None:
    """Check, on the meta device, that the tables that a model computes fit in memory.

    Raises:
        CheckpointError: They do not.
    """
    size = sum(buffer.nbytes for buffer in model.buffers())
    if size > MOST_BUFFER_BYTES:
        raise CheckpointError(
            f"{CONFIG_FILE} describes a model with {size:.3g} bytes of computed tables; none has so many"
        )


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text below a value, with its key; below the choice of a kernel, with that one's."""
    level: list[tuple[str, Any]] = [("", value)]
    while level:
        name, item = level.pop()
        if isinstance(item, dict):
            level += [(key if not _KERNELS.search(name) else name, part) for key, part in item.items()]
        elif isinstance(item, list):
            level += [(name, part) for part in item]
        elif isinstance(item, str):
            yield name, item


def _integers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield every integer below a value, with the key that it stands under."""
    level = [(key, value)]
    while level:
        name, item = level.pop()
        if isinstance(item, dict):
            level += item.items()
        elif isinstance(item, list):
            level += [(name, part) for part in item]
        elif isinstance(item, int) and not isinstance(item, bool):
            yield name, item
        elif isinstance(item, float) and item.is_integer() and not _LENGTHS.search(name) and _PARTS.search(name):
            yield name, int(item)
