"""The journal: finished blocks and activations of a run in progress, safe against a kill at any moment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowbit.contracts import ActivationWriter, LayerReport, PackedWeight, QuantizedBlock, QuantizedWeight, Stream
from lowbit.documents import read_json
from lowbit.durable import make_directory, write_json, write_tensors
from lowbit.errors import LowbitError
from lowbit.modeling.activations import StoredActivations
from lowbit.modeling.layouts import layout_of, packer_for, unpack
from lowbit.modeling.module_entry import entry_for, packed_module, read_entry, sentinel_name
from lowbit.modeling.sealing import damaged, digest_of, read_sealed, read_tensors, require_digest, sealed
from lowbit.untrusted import require_ordinary

SIGNATURE_FILE = "signature.json"


class Journal:
    """A `BlockStore` in a directory beside the checkpoint that is being made.

    A block is committed by one rename; what its commit makes superfluous is removed afterwards, and again at the next
    start if the process died in between. One process opens it and commits: it holds the checkpoint's lock. Others of
    the same run only write and read activations.

    Args:
        path: The journal's directory.
        packer: Name of the packer that lays out the weights whose format it serves.
        samples: Number of calibration sequences.
    """

    def __init__(self, path: Path, packer: str, samples: int) -> None:
        self.path = path
        self._packer = packer
        self._activations = StoredActivations(path, samples)

    def open(self, signature: Mapping[str, Any]) -> None:
        """Start a journal, or continue one that was written by the same command.

        Raises:
            LowbitError: The journal belongs to another recipe; the message lists the keys that differ.
        """
        make_directory(self.path)
        file = self.path / SIGNATURE_FILE
        if file.exists():
            check_signature(_read_json(file), signature, self.path)
        elif self.finished():
            raise LowbitError(f"{self.path} has finished blocks but no {SIGNATURE_FILE}; delete it and start again")
        else:
            write_json(file, signature)
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink()
        self._activations.keep_whole_inputs(self.finished())

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
            "block": block.index,
            "tensors_sha256": digest_of(tensors),
            "state_sha256": digest_of(block.state) if block.state else None,
        }
        if block.training is not None:
            report["training"] = dict(block.training)
        write_json(self.report_file(block.index), sealed(report))
        if block.state:
            write_tensors(self.state_file(block.index), block.state)
        write_tensors(self.tensors_file(block.index), tensors)
        self._activations.drop(before=block.index + 1)

    def block(self, index: int) -> QuantizedBlock:
        """Read a committed block back, with the state that its training ended with.

        Raises:
            LowbitError: One of its files is damaged, or is another block's.
        """
        report = self._report(index)
        tensors = read_tensors(self.tensors_file(index), report.get("tensors_sha256"))
        try:
            return self._block(index, report, tensors)
        except (LowbitError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise damaged(self.report_file(index), f"{type(error).__name__} {error}") from error

    def _block(self, index: int, report: Mapping[str, Any], tensors: dict[str, Tensor]) -> QuantizedBlock:
        weights: dict[str, QuantizedWeight] = {}
        fused = set()
        for name, found in report["modules"].items():
            entry = read_entry(name, found)
            home = packed_module(name, entry.fused)
            parts = {part: tensors.pop(f"{home}.{part}") for part in layout_of(entry.spec, entry.packer)}
            weights[name] = unpack(PackedWeight(entry.spec, entry.packer, parts))
            tensors.pop(sentinel_name(name, entry.fused), None)
            if entry.fused:
                fused.add(name)
        digest = report["state_sha256"]
        state = {} if digest is None else read_tensors(self.state_file(index), digest)
        reports = tuple(LayerReport(**{**layer, "notes": tuple(layer["notes"])}) for layer in report["layers"])
        return QuantizedBlock(
            index, weights, frozenset(fused), tensors, reports, report["seconds"], state, report.get("training")
        )

    def reports(self) -> list[dict[str, Any]]:
        """Return the stored reports of the finished blocks, in order."""
        return [self._report(index) for index in range(self.finished())]

    def stored_tensors(self, index: int, stack: ExitStack) -> dict[str, Tensor]:
        """Return a committed block's tensors, mapped from the file while the stack is open.

        Raises:
            LowbitError: The file is damaged, or is another block's.
        """
        file = self.tensors_file(index)
        try:
            require_ordinary(file)
            handle = stack.enter_context(safe_open(file, framework="pt"))
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - a handle is no mapping
        except (OSError, SafetensorError, ValueError) as error:
            raise damaged(file, str(error)) from error
        require_digest(file, tensors, self._report(index).get("tensors_sha256"))
        return tensors

    def _report(self, index: int) -> dict[str, Any]:
        report = read_sealed(self.report_file(index))
        if report.get("block") != index:
            raise damaged(self.report_file(index), f"it is the report of block {report.get('block')}")
        return report

    def has_activations(self, index: int, stream: Stream = "quantized") -> bool:
        """Say whether the complete input of a block is stored."""
        return self._activations.are_whole(index, stream)

    def activations(self, index: int, stream: Stream = "quantized", part: range | None = None) -> Iterator[Tensor]:
        """Yield samples [1, length, hidden size] that enter a block, one in memory at a time; all without `part`."""
        return self._activations.read(index, stream, part)

    def batch(self, index: int, samples: Sequence[int], stream: Stream = "quantized") -> Tensor:
        """Return some of the samples that enter a block, [n, length, hidden size]."""
        return self._activations.batch(index, stream, samples)

    def write_activations(
        self, index: int, stream: Stream = "quantized", part: range | None = None
    ) -> AbstractContextManager[ActivationWriter]:
        """Open samples that enter a block for writing, all without `part`; they appear when the context closes."""
        return self._activations.write(index, stream, part)

    def remove(self) -> None:
        """Delete the journal."""
        shutil.rmtree(self.path, ignore_errors=True)


def check_signature(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Compare the recipe that a journal or checkpoint was made by with the one that is run now.

    Raises:
        LowbitError: They differ; the message lists the differing keys with both values.
    """
    before, now = flatten(found), flatten(wanted)
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        listed = "; ".join(
            f"{key:.100}: {before.get(key)!r:.100} there, {now.get(key)!r:.100} now" for key in differing[:10]
        )
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
        return read_json(path, "the journal's file")
    except LowbitError as error:
        raise damaged(path, str(error)) from error
