"""The journal: finished blocks and activations of a run in progress, safe against a kill at any moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lowbit.contracts import LayerReport, PackedWeight, QuantizedBlock, QuantizedWeight, Stream
from lowbit.durable import make_directory, open_whole, write_json, write_tensors
from lowbit.errors import LowbitError
from lowbit.modeling.layouts import layout_of, packer_for, unpack
from lowbit.modeling.module_entry import ModuleEntry, entry_for, packed_module, sentinel_name

SIGNATURE_FILE = "signature.json"


class Journal:
    """A `BlockStore` in a directory beside the checkpoint that is being made.

    A block is committed by one rename; what its commit makes superfluous is removed afterwards, and again at the next
    start if the process died in between. One process writes in it: whoever opens it holds the checkpoint's lock.

    Args:
        path: The journal's directory.
        packer: Name of the packer that lays out the weights whose format it serves.
        samples: Number of calibration sequences.
    """

    def __init__(self, path: Path, packer: str, samples: int) -> None:
        self.path = path
        self._packer = packer
        self._samples = samples

    def open(self, signature: Mapping[str, Any]) -> None:
        """Start a journal, or continue one that was written by the same command.

        Raises:
            LowbitError: The journal belongs to another recipe; the message lists the keys that differ.
        """
        make_directory(self.path)
        file = self.path / SIGNATURE_FILE
        if file.exists():
            check_signature(_read_json(file), signature, self.path)
        else:
            write_json(file, signature)
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink()
        self._drop_activations(before=self.finished())

    def finished(self) -> int:
        """Return how many leading blocks are committed."""
        count = 0
        while self.tensors_file(count).exists():
            count += 1
        return count

    def tensors_file(self, index: int) -> Path:
        """Return where a block's tensors lie."""
        return self.path / f"block-{index:05d}.safetensors"

    def report_file(self, index: int) -> Path:
        """Return where a block's module entries, reports and seconds lie."""
        return self.path / f"block-{index:05d}.json"

    def state_file(self, index: int) -> Path:
        """Return where the state lies that a block's training ended with."""
        return self.path / f"block-{index:05d}.state.safetensors"

    def commit(self, block: QuantizedBlock) -> None:
        """Store a finished block and drop the activations that entered it."""
        tensors = dict(block.untouched)
        modules = {}
        for name, weight in block.weights.items():
            packed = packer_for(weight.format, self._packer).pack(weight)
            fused = name in block.fused
            modules[name] = entry_for(packed, fused).model_dump()
            home = packed_module(name, fused)
            tensors.update({f"{home}.{part}": tensor for part, tensor in packed.tensors.items()})
            tensors[sentinel_name(name, fused)] = torch.empty(0, dtype=torch.uint8)
        report: dict[str, Any] = {
            "modules": modules,
            "layers": [asdict(r) for r in block.reports],
            "seconds": block.seconds,
        }
        if block.training is not None:
            report["training"] = dict(block.training)
        write_json(self.report_file(block.index), report)
        if block.state:
            write_tensors(self.state_file(block.index), block.state)
        write_tensors(self.tensors_file(block.index), tensors)
        self._drop_activations(before=block.index + 1)

    def block(self, index: int) -> QuantizedBlock:
        """Read a committed block back, with the state that its training ended with."""
        report = _read_json(self.report_file(index))
        tensors = load_file(self.tensors_file(index))
        weights: dict[str, QuantizedWeight] = {}
        fused = set()
        for name, found in report["modules"].items():
            entry = ModuleEntry.model_validate(found)
            home = packed_module(name, entry.fused)
            parts = {part: tensors.pop(f"{home}.{part}") for part in layout_of(entry.spec(), entry.packer)}
            weights[name] = unpack(PackedWeight(entry.spec(), entry.packer, parts))
            tensors.pop(sentinel_name(name, entry.fused), None)
            if entry.fused:
                fused.add(name)
        state = load_file(self.state_file(index)) if self.state_file(index).exists() else {}
        reports = tuple(LayerReport(**{**layer, "notes": tuple(layer["notes"])}) for layer in report["layers"])
        return QuantizedBlock(
            index, weights, frozenset(fused), tensors, reports, report["seconds"], state, report.get("training")
        )

    def reports(self) -> list[dict[str, Any]]:
        """Return the stored reports of the finished blocks, in order."""
        return [_read_json(self.report_file(index)) for index in range(self.finished())]

    def has_activations(self, index: int, stream: Stream = "quantized") -> bool:
        """Say whether the complete input of a block is stored."""
        return self._activation_file(index, stream).exists()

    def activations(self, index: int, stream: Stream = "quantized") -> Iterator[Tensor]:
        """Yield the samples [1, length, hidden size] that enter a block, one in memory at a time."""
        stored = self._stored(index, stream)
        for sample in range(stored.shape[0]):
            yield torch.from_numpy(np.array(stored[sample : sample + 1]))

    def batch(self, index: int, samples: Sequence[int], stream: Stream = "quantized") -> Tensor:
        """Return some of the samples that enter a block, [n, length, hidden size]."""
        return torch.from_numpy(np.array(self._stored(index, stream)[list(samples)]))

    def _stored(self, index: int, stream: Stream) -> Any:
        return np.load(self._activation_file(index, stream), mmap_mode="r", allow_pickle=False)

    @contextmanager
    def write_activations(self, index: int, stream: Stream = "quantized") -> Iterator[_Writer]:
        """Open the input of a block for writing; the file appears, whole, when the context closes."""
        with open_whole(self._activation_file(index, stream)) as file:
            writer = _Writer(file, self._samples)
            yield writer
            writer.require_complete()

    def remove(self) -> None:
        """Delete the journal."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _activation_file(self, index: int, stream: Stream) -> Path:
        return self.path / f"{'activations' if stream == 'quantized' else stream}-{index:05d}.npy"

    def _drop_activations(self, before: int) -> None:
        for index in range(before):
            for stream in get_args(Stream):
                self._activation_file(index, stream).unlink(missing_ok=True)


class _Writer:
    """Appends samples to an array file whose number of samples is known."""

    def __init__(self, file: IO[bytes], samples: int) -> None:
        self._file = file
        self._samples = samples
        self._written = 0

    def append(self, hidden: Tensor) -> None:
        """Add one sample, [1, length, hidden size]."""
        array = hidden.detach().float().cpu().contiguous().numpy()
        if self._written == 0:
            header = {"descr": "<f4", "fortran_order": False, "shape": (self._samples, *array.shape[1:])}
            np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(array.tobytes())
        self._written += 1

    def require_complete(self) -> None:
        """Raise unless every sample was written."""
        if self._written != self._samples:
            raise LowbitError(f"{self._written} of {self._samples} calibration samples were stored")


def check_signature(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Compare the recipe that a journal or checkpoint was made by with the one that is run now.

    Raises:
        LowbitError: They differ; the message lists the differing keys with both values.
    """
    before, now = flatten(found), flatten(wanted)
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        listed = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in differing[:10])
        raise LowbitError(
            f"{where} was started by another recipe ({listed}); delete it, choose another output, or run the old recipe"
        )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested JSON value as dotted keys to leaves."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(position), item) for position, item in enumerate(value)]
    else:
        return {prefix: value}
    return {name: leaf for key, item in items for name, leaf in flatten(item, f"{prefix}.{key}".lstrip(".")).items()}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LowbitError(f"{path} cannot be read: {error}; delete {path.parent} and start again") from error
