"""Which files of a data set's local folder make up each split of a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.documents import parse_yaml
from lowbit.errors import LowbitError

BUILDERS: Mapping[str, str] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
"""The reader of `datasets` for each file extension, the preferred format first."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
SPLIT_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in a file's or folder's name, and the split that they name."""

# Files that the hub keeps beside the data, and that are no data.
_METADATA_FILES = {"dataset_infos.json", "dataset_info.json", "state.json"}
_SHARD = re.compile(r"(?P<stem>.+?)[.-]\d{5}-of-\d{5}(-[0-9a-f]+)?")


@dataclass(frozen=True)
class Configuration:
    """One configuration of a data set: the files of each split and the options of their reader."""

    name: str
    splits: Mapping[str, tuple[Path, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)


def is_data_file(path: Path) -> bool:
    """Whether the extension is one that can be read, compressed or not, and the name is not the hub's own."""
    return data_extension(path) in BUILDERS and path.name not in _METADATA_FILES


def data_extension(path: Path) -> str:
    """The extension that tells the format, without that of the compression."""
    return (Path(path.stem) if path.suffix in COMPRESSIONS else path).suffix.lower()


def read_card(folder: Path) -> dict[str, Any]:
    """The front matter of a data set's README.md, empty when there is none.

    Raises:
        LowbitError: The front matter is not valid YAML.
    """
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    text = readme.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    card = parse_yaml(match.group(1), f"the front matter of {readme}")
    return card if isinstance(card, dict) else {}


def find_configuration(
    folder: Path,
    name: str | None,
    *,
    data_dir: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
) -> Configuration:
    """Find the files of a configuration, as the README.md says or else by the names of files and folders.

    A split that the README.md lists but whose files are not there is left out.

    Args:
        folder: The data set's folder.
        name: The configuration, or None for the default one.
        data_dir: A folder inside `folder` that a task names itself.
        data_files: Patterns inside `folder` that a task names itself, by split or for `train` alone.

    Raises:
        LowbitError: There is no such configuration, or it has no file of a known format.
    """
    if data_files is not None:
        splits = _match_patterns(folder / (data_dir or ""), data_files)
        return _checked(Configuration(name or "default", splits), folder)
    if data_dir is not None:
        return _checked(Configuration(name or "default", _infer_splits(folder, folder / data_dir)), folder)
    listed = [entry for entry in read_card(folder).get("configs") or [] if _lists_files(entry)]
    if listed:
        return _checked(_from_card(folder, name, listed), folder)
    root = _configuration_folder(folder, name)
    return _checked(Configuration(name or "default", _infer_splits(folder, root)), folder)


def _checked(configuration: Configuration, folder: Path) -> Configuration:
    if not configuration.splits:
        raise LowbitError(
            f"configuration {configuration.name!r} has no data in {folder}: expected files that end in "
            f"{', '.join(BUILDERS)}, compressed or not"
        )
    return configuration


def _lists_files(entry: object) -> bool:
    return isinstance(entry, dict) and ("data_files" in entry or "data_dir" in entry)


def _from_card(folder: Path, name: str | None, entries: Sequence[Mapping[str, Any]]) -> Configuration:
    names = [str(entry.get("config_name", "default")) for entry in entries]
    if name is None:
        name = _default_name(folder, names, entries)
    if name not in names:
        raise LowbitError(f"there is no configuration {name!r} in {folder / 'README.md'}, which lists {names}")
    entry = entries[names.index(name)]
    root = folder / str(entry.get("data_dir", ""))
    splits = _match_patterns(root, entry["data_files"]) if "data_files" in entry else _infer_splits(folder, root)
    described = {"config_name", "data_files", "data_dir", "default", "description", "version"}
    options = {key: value for key, value in entry.items() if key not in described and not key.startswith("drop_")}
    return Configuration(name, splits, options)


def _default_name(folder: Path, names: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> str:
    for name, entry in zip(names, entries, strict=True):
        if entry.get("default") is True:
            return name
    if "default" in names or len(names) == 1:
        return "default" if "default" in names else names[0]
    raise LowbitError(f"{folder / 'README.md'} names no default configuration: choose one of {names}")


def _configuration_folder(folder: Path, name: str | None) -> Path:
    """The folder of a configuration where no README.md says so."""
    if name is not None and name != "default":
        for candidate in (folder / name, folder / "data" / name):
            if candidate.is_dir():
                return candidate
        raise LowbitError(
            f"there is no configuration {name!r} in {folder}: expected a folder {folder / name}, "
            f"or a README.md whose front matter lists it under 'configs'"
        )
    for candidate in (folder / "default", folder / "data"):
        if candidate.is_dir() and _data_files_below(candidate):
            return candidate
    files = _data_files_below(folder)
    parts = {path.relative_to(folder).parts[0] for path in files if len(path.relative_to(folder).parts) > 1}
    configurations = sorted(part for part in parts if _split_word(part) is None)
    if len(configurations) > 1 and not any(path.parent == folder for path in files):
        raise LowbitError(f"{folder} holds the configurations {configurations} and no README.md that names a default")
    return folder


def _data_files_below(root: Path) -> list[Path]:
    """Data files below a folder, without hidden folders such as the `.cache` of a download."""
    found = (path for path in root.rglob("*") if path.is_file() and is_data_file(path))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def _match_patterns(root: Path, patterns: Any) -> dict[str, tuple[Path, ...]]:
    """Files by split for the forms that `data_files` takes on the hub: one pattern, a list, or one entry a split."""
    if isinstance(patterns, str):
        by_split: dict[str, Any] = {"train": [patterns]}
    elif isinstance(patterns, Mapping):
        by_split = dict(patterns)
    elif all(isinstance(entry, Mapping) for entry in patterns):
        by_split = {str(entry["split"]): entry["path"] for entry in patterns}
    else:
        by_split = {"train": list(patterns)}
    matched: dict[str, tuple[Path, ...]] = {}
    for split, globs in by_split.items():
        files = [path for glob in ([globs] if isinstance(globs, str) else globs) for path in _glob(root, str(glob))]
        if files:
            matched[split] = tuple(dict.fromkeys(files))
    return matched


def _glob(root: Path, pattern: str) -> list[Path]:
    """Data files that match a pattern and lie inside the folder; a pattern that leads out of it matches nothing."""
    if "://" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        return []
    return sorted(path for path in root.glob(pattern) if path.is_file() and is_data_file(path))


def _infer_splits(folder: Path, root: Path) -> dict[str, tuple[Path, ...]]:
    """Files by split, from the names of the files or of the folders that hold them."""
    found: dict[str, list[Path]] = {}
    for path in _data_files_below(root):
        found.setdefault(_split_of(path, root), []).append(path)
    return {split: tuple(_one_format(files)) for split, files in found.items()}


def _split_of(path: Path, root: Path) -> str:
    name = path.name
    while Path(name).suffix in COMPRESSIONS or Path(name).suffix.lower() in BUILDERS:
        name = Path(name).stem
    shard = _SHARD.fullmatch(name)
    stem = shard.group("stem") if shard else name
    # As on the hub, the part before a shard's number is the split's own name.
    if stem in SPLIT_WORDS or (shard and re.fullmatch(r"\w+", stem)):
        return stem
    for part in (stem, *reversed(path.relative_to(root).parts[:-1])):
        if word := _split_word(part):
            return word
    return "train"


def _split_word(name: str) -> str | None:
    """The split that the words of a name stand for, None when it holds no such word."""
    words = [SPLIT_WORDS[word] for word in re.split(r"[^a-z0-9]+|_", name.lower()) if word in SPLIT_WORDS]
    return words[-1] if words else None


def _one_format(files: Iterable[Path]) -> list[Path]:
    """Keep one format, the preferred one, and one of several copies that differ in their compression only."""
    by_builder: dict[str, dict[str, Path]] = {}
    for path in sorted(files, key=lambda path: (path.suffix in COMPRESSIONS, str(path))):
        plain = str(path.with_suffix("")) if path.suffix in COMPRESSIONS else str(path)
        by_builder.setdefault(BUILDERS[data_extension(path)], {}).setdefault(plain, path)
    preferred = next(builder for builder in BUILDERS.values() if builder in by_builder)
    return sorted(by_builder[preferred].values())


def find_alias(split: str, splits: Iterable[str]) -> str | None:
    """The one split of those given that has another common name for the same part, `dev` for `validation`; or None."""
    if split not in SPLIT_WORDS:
        return None
    candidates = [name for name in splits if SPLIT_WORDS.get(name) == SPLIT_WORDS[split]]
    return candidates[0] if len(candidates) == 1 else None
