"""A parent checkpoint on disk: its safetensors files, their headers, and lazy access to single tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowbit import untrusted
from lowbit.documents import read_json
from lowbit.errors import CheckpointError, LowbitError
from lowbit.models.small_files import require_inside, require_ordinary_files

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("U8", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
TOKENIZER_PATTERNS = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken"),
    *("chat_template*", "additional_chat_templates/*"),
)
HASHED_PATTERNS = ("config.json", *TOKENIZER_PATTERNS)
HASHED_BYTES = 2**24
MOST_INDEX_BYTES = 2**28
DOWNLOADED_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]


class ParentCheckpoint:
    """The safetensors files of a folder; every file's header is read, no weight is.

    Args:
        folder: The model's folder.

    Raises:
        CheckpointError: A file is absent, truncated or damaged, or the index disagrees with the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _shards(folder)
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in self.files:
            for key, (dtype, shape) in read_header(file).items():
                self._file_of[key] = file
                self.dtypes[key], self.shapes[key] = dtype, shape
        self._check_index()

    def keys(self) -> Iterable[str]:
        """Return every tensor name in the files."""
        return self._file_of.keys()

    def __contains__(self, key: str) -> bool:
        return key in self._file_of

    @contextmanager
    def slices(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Open lazy slices of some tensors; nothing is read before a slice is indexed."""
        with ExitStack() as stack:
            handles: dict[Path, Any] = {}
            found = {}
            for key in keys:
                file = self._file_of[key]
                if file not in handles:
                    handles[file] = stack.enter_context(safe_open(file, framework="pt"))
                found[key] = handles[file].get_slice(key)
            yield found

    def tensor(self, key: str) -> Tensor:
        """Return one tensor, mapped from the file rather than copied."""
        with safe_open(self._file_of[key], framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(key)
            return tensor

    def tensor_bytes(self, key: str) -> int:
        """Return the bytes of one tensor."""
        return math.prod(self.shapes[key]) * ITEM_BYTES[self.dtypes[key]]

    def bytes(self) -> int:
        """Return the size of the safetensors files."""
        return sum(file.stat().st_size for file in self.files)

    def sha256(self) -> str:
        """Return the hash of configuration, tokenizer and weights: the identity of the parent."""
        return model_hash(self.folder)

    def _check_index(self) -> None:
        index = self.folder / INDEX_FILE
        if not index.exists():
            return
        promised = _weight_map(index)
        wrong = [key for key, name in promised.items() if self._file_of.get(key) != self.folder / name]
        if wrong:
            raise CheckpointError(
                f"{index} disagrees with the files on {len(wrong)} tensors: {wrong[0]} is not in {promised[wrong[0]]}"
            )


def read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype name and shape of every tensor in a safetensors file, checked against the file's length.

    Raises:
        CheckpointError: The file is absent, truncated or damaged.
    """
    require_inside(file, file.parent)
    try:
        if not file.is_file():  # A pipe would never end.
            raise CheckpointError(f"{file} is missing, or no ordinary file")
        with safe_open(file, framework="pt") as handle:
            names = handle.keys()
            slices = {name: handle.get_slice(name) for name in names}
            header = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError, TypeError) as error:
        told = " ".join(untrusted.printable(error).split())[:300]
        raise CheckpointError(f"{file} is missing, truncated or damaged: {told}") from error
    for name, (dtype, _) in header.items():
        if dtype not in ITEM_BYTES or name != untrusted.printable(name):
            shown = untrusted.printable(name)[:100]
            raise CheckpointError(f"{file}: tensor {shown} is of type {dtype}; its name or type is none that is read")
    return header


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if not index.exists():
        single = folder / SINGLE_FILE
        if not single.exists():
            raise CheckpointError(
                f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; lowbit reads safetensors only (no pickled .bin)"
            )
        return [single]
    return [folder / name for name in sorted(set(_weight_map(index).values()))]


def _weight_map(index: Path) -> dict[str, str]:
    require_inside(index, index.parent)
    try:
        content = read_json(index, "index", MOST_INDEX_BYTES)
    except LowbitError as error:
        raise CheckpointError(f"{index} is no index with a weight_map: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is no index with a weight_map that names tensors")
    for name in weight_map.values():
        if not isinstance(name, str):
            raise CheckpointError(f"{index}: weight_map must map tensor names to file names, not to {str(name)[:50]!r}")
        if not _is_file_name(name):
            raise CheckpointError(f"{index} points outside its folder, or to no safetensors file: {name[:100]!r}")
    return weight_map


def _is_file_name(name: str) -> bool:
    """Say whether this is a plain name of a safetensors file, which leads nowhere else."""
    plain = len(name) < 256 and name == untrusted.printable(name) and name.endswith(".safetensors")
    return plain and Path(name).name == name


def find_model_folder(path: str, revision: str | None) -> Path:
    """Return the folder of a model: the path itself, or where the hub's files were downloaded to.

    Raises:
        LowbitError: The path is no model folder and no reachable hub id.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise LowbitError(f"{folder} has no config.json; give the folder of a Hugging Face model")
        require_ordinary_files(folder)
        return folder
    if folder.is_absolute() or path.startswith(".") or path.count("/") > 1:
        raise LowbitError(f"model folder {path} does not exist")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=DOWNLOADED_PATTERNS))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LowbitError(f"{path} is neither a folder here nor a model that could be downloaded: {first}") from error


def model_hash(path: str | Path) -> str:
    """Return the sha256 of everything in a model's folder that decides its answers.

    These are config.json, the tokenizer's files and the safetensors files: their names and their bytes.

    Raises:
        LowbitError: The folder lacks config.json or safetensors files, or a file cannot be read.
    """
    folder = Path(path)
    require_ordinary_files(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise LowbitError(f"{folder} is no model folder: expected config.json and *.safetensors files in it")
    others = {file for pattern in HASHED_PATTERNS for file in folder.glob(pattern) if file.is_file()}
    digest = hashlib.sha256()
    for file in [*sorted(others - set(weights)), *weights]:
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(HASHED_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise LowbitError(f"cannot read {file}: {error}") from error
    return digest.hexdigest()
