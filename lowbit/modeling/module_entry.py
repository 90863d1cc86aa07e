"""What `quantization_config.modules` says of one quantized weight, read with suspicion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lowbit import untrusted
from lowbit.contracts import FormatSpec, PackedWeight
from lowbit.errors import CheckpointError, UnknownNameError
from lowbit.modeling.layouts import layout_of
from lowbit.models.checkpoint import read_header
from lowbit.models.experts import PACKED_SUFFIX
from lowbit.registry import registry

LARGEST_SIZE = 2**40
LONGEST_NAME = 300
STORED_NAMES = {
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}


class ModuleEntry(BaseModel):
    """One quantized weight in a checkpoint's configuration.

    `sizes`, `dtypes` and `parameters` resolve the format's declaration; `fused` says that the weight is one expert's
    part of a fused parameter; `plugin` names the distribution that registered the format.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    format_version: int = Field(ge=1)
    packer: str
    sizes: dict[str, int]
    dtypes: dict[str, str]
    parameters: dict[str, int | float | str | bool]
    plugin: str
    fused: bool = False

    def spec(self) -> FormatSpec:
        """Return the resolved declaration."""
        return FormatSpec(self.format, self.format_version, self.sizes, self.dtypes, self.parameters)


@dataclass(frozen=True)
class LoadedEntry:
    """A module entry whose format and packer are available here."""

    name: str
    spec: FormatSpec
    packer: str
    fused: bool


def entry_for(packed: PackedWeight, fused: bool) -> ModuleEntry:
    """Describe a packed weight for the configuration."""
    spec = packed.spec
    return ModuleEntry(
        format=spec.format,
        format_version=spec.version,
        packer=packed.packer,
        sizes=dict(spec.sizes),
        dtypes=dict(spec.dtypes),
        parameters=dict(spec.parameters),
        plugin=registry().source("format", spec.format).distribution,
        fused=fused,
    )


def read_entry(name: str, value: Any) -> LoadedEntry:
    """Check one entry of a checkpoint's configuration against the plugins at hand.

    Raises:
        CheckpointError: The entry is malformed, or its format is newer than or missing from this installation.
    """
    try:
        entry = ModuleEntry.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = untrusted.printable(".".join(map(str, first["loc"])))[:200]
        raise CheckpointError(f"quantization_config.modules[{name[:200]!r}].{where}: {first['msg']}") from error
    if not all(0 <= size <= LARGEST_SIZE for size in entry.sizes.values()):
        raise CheckpointError(f"quantization_config.modules[{name[:200]!r}] has a size below 0 or over {LARGEST_SIZE}")
    if any(len(text) > LONGEST_NAME or not text.isprintable() for text in (name, *_texts(entry))):
        raise CheckpointError(f"quantization_config.modules[{name[:200]!r}] has a text that is too long or unprintable")
    if entry.fused and not name.rpartition(".")[2].isdecimal():
        raise CheckpointError(f"quantization_config.modules[{name!r}] is an expert's, so it must end in a number")
    try:
        format_class = registry().format(entry.format)
        if entry.packer != "plain":
            registry().packer(entry.packer)
    except UnknownNameError as error:
        raise CheckpointError(
            f"this checkpoint needs the plugin distribution {entry.plugin!r}, which is not installed here: {error}"
        ) from error
    if entry.format_version > format_class.version:
        raise CheckpointError(
            f"this checkpoint has format {entry.format} version {entry.format_version}; the installed "
            f"{entry.plugin} reads versions up to {format_class.version}: upgrade it"
        )
    try:
        layout = layout_of(entry.spec(), entry.packer)
        if any(not 0 <= size <= LARGEST_SIZE for tensor in layout.values() for size in tensor.shape):
            raise ValueError(f"a tensor has a size below 0 or over {LARGEST_SIZE}")
    except Exception as error:  # a layout is computed by plugins, of numbers that nobody has checked
        told = untrusted.printable(f"{type(error).__name__} {error}")[:300]
        raise CheckpointError(f"quantization_config.modules[{name!r}] does not hold together: {told}") from error
    return LoadedEntry(name, entry.spec(), entry.packer, entry.fused)


def _texts(entry: ModuleEntry) -> Iterator[str]:
    """Yield every text of an entry."""
    yield from (entry.format, entry.packer, entry.plugin, *entry.sizes, *entry.dtypes, *entry.dtypes.values())
    yield from entry.parameters
    yield from (value for value in entry.parameters.values() if isinstance(value, str))


def packed_module(target: str, fused: bool) -> str:
    """Return the name of the module that holds a target's packed tensors."""
    parameter, _, expert = target.rpartition(".")
    return f"{parameter}{PACKED_SUFFIX}.{expert}" if fused else target


def sentinel_name(target: str, fused: bool) -> str:
    """Return the name of the empty uint8 tensor that makes a loader without lowbit fail on this target."""
    return target.rpartition(".")[0] if fused else f"{target}.weight"


def require_stored(entries: Iterable[LoadedEntry], files: Iterable[Path]) -> None:
    """Compare the declared tensors with the headers of the files: names, shapes and dtypes.

    Raises:
        CheckpointError: A tensor is missing, or is another one than the configuration says.
    """
    stored = {name: found for file in files for name, found in read_header(file).items()}
    for entry in entries:
        home = packed_module(entry.name, entry.fused)
        layout = layout_of(entry.spec, entry.packer)
        declared = {f"{home}.{part}": (STORED_NAMES[t.dtype], tuple(t.shape)) for part, t in layout.items()}
        declared[sentinel_name(entry.name, entry.fused)] = ("U8", (0,))
        for name, expected in declared.items():
            if name not in stored:
                raise CheckpointError(f"the checkpoint lacks the tensor {name}; it is incomplete, copy it again")
            if stored[name] != expected:
                raise CheckpointError(
                    f"tensor {name} is {stored[name]} in the file, but the configuration says {expected}"
                )
