"""Generated tokens on disk: written batch by batch, continued after an interruption, used again when whole.

`NAME.npz` holds the tokens and `NAME.json` says how they were made, with their hash. Finished batches lie in
`NAME.partial/` until both are there. Everything appears by renaming, and the description before the tokens, so that
processes that write the same tokens at the same time agree.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.calibration import TOKEN_FILE_SUFFIX, CalibrationTokens
from lowbit.calibration.token_files import read_token_file
from lowbit.contracts.training import GenerationSettings
from lowbit.distillation.generation import batch_generator, first_tokens, generate_batch, greedy_counts
from lowbit.durable import make_directory, open_whole, write_json
from lowbit.errors import LowbitError
from lowbit.untrusted import read_json

FORMAT = 1
"""Raised when the same request gives other tokens than before."""
NAME = "generated"
_PACKAGES = ("torch", "transformers")

OnBatch = Callable[[int, int], None]
"""Hears how many batches are finished, and of how many: once before the first new one, and after each."""


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that decides generated tokens.

    Args:
        key: What stands for the model: plain JSON values, such as its hash.
        settings: How sequences are written; its `seq_len` is not read.
        length: Tokens a sequence.
        seed: Decides every draw.
    """

    key: Mapping[str, Any]
    settings: GenerationSettings
    length: int
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        settings = self.settings.model_dump(mode="json", exclude={"seq_len"})
        identity = {"key": dict(self.key), "settings": settings, "seq_len": self.length, "seed": self.seed}
        return {"format": FORMAT, **identity}

    @property
    def sha256(self) -> str:
        """Return the hash of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def batches(self) -> int:
        """Return the number of batches."""
        return -(-self.settings.n_samples // self.settings.batch_size)

    def shape(self, batch: int) -> tuple[int, int]:
        """Return sequences and tokens a sequence of one batch."""
        done = batch * self.settings.batch_size
        return min(self.settings.batch_size, self.settings.n_samples - done), self.length


def generated_tokens(
    folder: Path,
    key: Mapping[str, Any],
    settings: GenerationSettings,
    length: int,
    make_model: Callable[[], Any],
    tokenizer: Any,
    seed: int,
    on_batch: OnBatch,
) -> CalibrationTokens:
    """Return generated tokens from a folder that keeps them by the hash of what decides them, writing them if absent.

    Args:
        folder: Where they are kept.
        key: What stands for the model: plain JSON values, such as its hash.
        settings: How sequences are written; its `seq_len` is not read.
        length: Tokens a sequence, all of them exactly.
        make_model: Loads the model; not called when every batch is on the disk.
        tokenizer: The model's tokenizer.
        seed: Decides every draw.
        on_batch: Hears of progress; not called when the tokens were whole before.

    Raises:
        LowbitError: A file is damaged or cannot be written, or the model cannot write text.
    """
    request = GenerationRequest(key, settings, length, seed)
    path = folder / f"{request.sha256}{TOKEN_FILE_SUFFIX}"
    return write_generated(path, request, make_model, tokenizer, on_batch)


def write_generated(
    path: Path, request: GenerationRequest, make_model: Callable[[], Any], tokenizer: Any, on_batch: OnBatch
) -> CalibrationTokens:
    """Return the generated tokens of a file, writing or finishing it if need be.

    Args:
        path: The `.npz` file.
        request: What decides the tokens.
        make_model: Loads the model; not called when every batch is on the disk.
        tokenizer: The model's tokenizer.
        on_batch: Hears of progress; not called when the file was whole before.

    Raises:
        LowbitError: The file is damaged, was made otherwise, or cannot be written; or the model cannot write text.
    """
    found = read_generated(path, request)
    batches = _Batches(path.with_suffix(".partial"), request)
    if found is None:
        found = _finish(path, request, batches, make_model, tokenizer, on_batch)
    batches.remove()  # Also what a run left that was killed just before it came here.
    return CalibrationTokens(found, NAME)


def read_generated(path: Path, request: GenerationRequest) -> Tensor | None:
    """Return the tokens of a finished file, int64 [samples, length]; `None` when it is not there yet.

    Raises:
        LowbitError: It is damaged, or was made otherwise than requested.
    """
    # In this order: another process that finishes the same tokens meanwhile writes the description first.
    present = path.exists()
    described = _description(path, request)
    if not present:
        return None
    if described is None:
        raise LowbitError(f"{path} has no {_beside(path).name} that says how it was made; delete it or choose another")
    tokens = _read(path)
    if tokens is None or CalibrationTokens(tokens, NAME).sha256 != described["sha256"]:
        raise LowbitError(
            f"{path} is damaged: its tokens are not those that {_beside(path).name} describes; delete both files, and "
            "the tokens are generated again"
        )
    return tokens


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _description(path: Path, request: GenerationRequest) -> dict[str, Any] | None:
    """Read what lies beside the tokens and compare it with the request; `None` when nothing is there."""
    beside = _beside(path)
    try:
        described: Any = read_json(beside)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LowbitError(f"{beside} cannot be read: {error}; delete it and {path.name}, or choose another") from error
    wanted = request.identity
    if not isinstance(described, dict) or not {"sha256", *wanted} <= described.keys():
        raise LowbitError(f"{beside} does not describe generated tokens; move it away or choose another name")
    before, now = _flatten(described, wanted), _flatten(wanted, wanted)
    if differing := [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]:
        listed = "; ".join(f"{name}: {before.get(name)!r:.100} there, {now.get(name)!r:.100} now" for name in differing)
        raise LowbitError(f"{path} was made with other settings ({listed}); delete it or choose another name")
    return described


def _flatten(value: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the named entries, those of a section each under their own name."""
    flat: dict[str, Any] = {}
    for name in names:
        section = value[name]
        flat.update({f"{name}.{part}": item for part, item in section.items()} if isinstance(section, dict) else {})
        flat.update({} if isinstance(section, dict) else {name: section})
    return flat


class _Batches:
    """Finished batches in a folder of their own.

    Args:
        folder: Made when the first one is written.
        request: Its hash is in the files' names, so that another request's batches are never taken.
    """

    def __init__(self, folder: Path, request: GenerationRequest) -> None:
        self._folder = folder
        self._request = request

    def read(self, batch: int) -> Tensor | None:
        """Return a batch; `None` when it is absent or damaged, to be generated again."""
        tokens = _read(self._path(batch))
        return tokens if tokens is not None and tuple(tokens.shape) == self._request.shape(batch) else None

    def write(self, batch: int, tokens: Tensor) -> None:
        """Keep a batch."""
        make_directory(self._folder)
        _write(self._path(batch), tokens)

    def remove(self) -> None:
        """Remove the folder; what another process writes there at this moment it removes itself."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, batch: int) -> Path:
        return self._folder / f"{self._request.sha256[:16]}-{batch:06d}{TOKEN_FILE_SUFFIX}"


def _finish(
    path: Path,
    request: GenerationRequest,
    batches: _Batches,
    make_model: Callable[[], Any],
    tokenizer: Any,
    on_batch: OnBatch,
) -> Tensor:
    """Generate what is missing and write the file, unless another process does so first."""
    make_directory(path.parent)
    done = {number: tokens for number in range(request.batches) if (tokens := batches.read(number)) is not None}
    on_batch(len(done), request.batches)
    writer = None
    for number in range(request.batches):
        if number in done:
            continue
        if (finished := read_generated(path, request)) is not None:
            return finished
        # Another process may have written it in the meantime.
        tokens = batches.read(number)
        if tokens is None:
            writer = writer or _Writer(request, make_model(), tokenizer)
            tokens = writer.batch(number)
            try:
                batches.write(number, tokens)
            except LowbitError:
                # A process that has finished removes the folder of batches.
                if not path.exists():
                    raise
        done[number] = tokens
        on_batch(len(done), request.batches)
    return _publish(path, request, torch.cat([done[number] for number in range(request.batches)]))


class _Writer:
    """Generates batches of a request.

    Args:
        request: What decides the tokens.
        model: A causal language model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, request: GenerationRequest, model: Any, tokenizer: Any) -> None:
        self._request, self._model = request, model
        vocabulary = min(len(tokenizer), int(model.get_input_embeddings().weight.shape[0]))
        self._first = first_tokens(
            request.settings, tokenizer, vocabulary, batch_generator(request.seed, "first tokens")
        )
        self._greedy = greedy_counts(request.settings)

    def batch(self, number: int) -> Tensor:
        """Generate a batch: int64 [sequences, length]."""
        settings = self._request.settings
        generator = batch_generator(self._request.seed, f"batch {number}")
        first = self._first.split(settings.batch_size)[number]
        greedy = self._greedy.split(settings.batch_size)[number]
        if settings.first_tokens == "model":
            none = torch.zeros_like(greedy)
            first = generate_batch(self._model, first, none, first.shape[1] + 1, settings.temperature, generator)
        return generate_batch(self._model, first, greedy, self._request.length, settings.temperature, generator)


def _publish(path: Path, request: GenerationRequest, tokens: Tensor) -> Tensor:
    if (finished := read_generated(path, request)) is not None:
        return finished
    described = {
        **request.identity,
        "sha256": CalibrationTokens(tokens, NAME).sha256,
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }
    write_json(_beside(path), described)
    _write(path, tokens)
    return tokens


def _write(path: Path, tokens: Tensor) -> None:
    """Write a token file whose bytes depend on the tokens alone."""
    with open_whole(path) as file:
        np.savez(file, tokens=tokens.numpy().astype("<i4"))


def _read(path: Path) -> Tensor | None:
    """Return the tokens of a file, int64 [samples, length]; `None` when it is absent or damaged."""
    try:
        return torch.from_numpy(read_token_file(path).astype(np.int64))
    except (OSError, ValueError):
        return None
