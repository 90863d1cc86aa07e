"""Calibration tokens: from a registered source, a text file or a token file to one array of sequences."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit.calibration.text_files import LINES_SUFFIXES, TEXT_SUFFIXES, read_documents
from lowbit.calibration.token_files import TokenArray, read_token_file
from lowbit.contracts import CalibrationSource, DataAccess
from lowbit.errors import LowbitError

TOKEN_FILE_SUFFIX = ".npz"


@dataclass(frozen=True)
class CalibrationTokens:
    """The sequences that statistics come from.

    Args:
        tokens: int64 [samples, length].
        name: Name of the source or of the file.
        domain: The source's data set family; `None` for a file.
    """

    tokens: Tensor
    name: str
    domain: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of shape and token ids."""
        digest = hashlib.sha256(str(tuple(self.tokens.shape)).encode())
        digest.update(self.tokens.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TokenRequest:
    """How many tokens are wanted, and for which model.

    Args:
        n_samples: Sequences.
        seq_len: Tokens a sequence.
        vocabulary: Number of rows of the model's embedding; larger ids are refused.
        seed: Decides which windows of a text are taken.
    """

    n_samples: int
    seq_len: int
    vocabulary: int
    seed: int


def load_calibration(
    source: str,
    find_source: Callable[[str], type[CalibrationSource]],
    encode: Callable[[str], list[int]],
    request: TokenRequest,
    access: DataAccess,
) -> CalibrationTokens:
    """Load calibration tokens.

    Text is joined, tokenized as a whole and cut into windows that start at random positions, the manner of GPTQ. A
    token file is used as it is, its first `n_samples` sequences cut to `seq_len`.

    Args:
        source: Registered name, or a .txt, .jsonl (each line an object with `text`; both also .gz) or .npz file.
        find_source: Looks up a registered source.
        encode: The model's tokenizer.
        request: How much is wanted.
        access: How data sets are reached.

    Raises:
        LowbitError: The source is unknown, damaged, or shorter than asked for.
    """
    if source.endswith(TOKEN_FILE_SUFFIX):
        tokens = _from_token_file(Path(source), request)
        return CalibrationTokens(tokens, Path(source).name)
    if source.endswith((*TEXT_SUFFIXES, *LINES_SUFFIXES)):
        documents = list(read_documents(Path(source)))
        return CalibrationTokens(_windows("\n\n".join(documents), encode, request, source), Path(source).name)
    found = find_source(source)()
    text = found.separator.join(found.documents(access))
    return CalibrationTokens(_windows(text, encode, request, source), found.name, found.domain)


def _windows(text: str, encode: Callable[[str], list[int]], request: TokenRequest, source: str) -> Tensor:
    ids = torch.tensor(encode(text), dtype=torch.int64)
    if len(ids) < request.seq_len + request.n_samples:
        raise LowbitError(
            f"calibration {source} has {len(ids)} tokens, too few for {request.n_samples} windows of "
            f"{request.seq_len}; give more text, or smaller --n_samples or --seq_len"
        )
    _check_vocabulary(ids, request, source)
    generator = torch.Generator().manual_seed(request.seed)
    starts = torch.randint(0, len(ids) - request.seq_len + 1, (request.n_samples,), generator=generator)
    return torch.stack([ids[start : start + request.seq_len] for start in starts.tolist()])  # [samples, length]


def _check_vocabulary(ids: Tensor, request: TokenRequest, source: str) -> None:
    if int(ids.min()) < 0 or int(ids.max()) >= request.vocabulary:
        raise LowbitError(
            f"calibration {source} has token id {int(ids.max())}, but the model's vocabulary has {request.vocabulary}; "
            "it was made with another tokenizer"
        )


def token_file_shape(path: Path) -> tuple[int, int]:
    """Return how many sequences a token file holds, and of how many tokens.

    Raises:
        LowbitError: The file cannot be read, or holds no such array.
    """
    samples, length = _read(path).shape
    return samples, length


def _from_token_file(path: Path, request: TokenRequest) -> Tensor:
    array = _read(path)
    samples, length = array.shape
    if samples < request.n_samples or length < request.seq_len:
        raise LowbitError(
            f"calibration file {path} holds {samples} sequences of {length} tokens; asked for {request.n_samples} of "
            f"{request.seq_len}: set --n_samples and --seq_len"
        )
    tokens = torch.from_numpy(array[: request.n_samples, : request.seq_len].astype(np.int64))
    _check_vocabulary(tokens, request, str(path))
    return tokens


def _read(path: Path) -> TokenArray:
    try:
        return read_token_file(path)
    except OSError as error:
        raise LowbitError(f"calibration file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise LowbitError(f"calibration file {path} cannot be read as .npz: {error}") from error
