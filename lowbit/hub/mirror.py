"""A local mirror of hub data sets: what `datasets.load_dataset` answers, from a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from lowbit.errors import LowbitError
from lowbit.hub.files import BUILDERS as READERS
from lowbit.hub.files import Configuration, data_extension, find_alias, find_configuration

# What `load_dataset` understands beside the options of a reader, and what has no meaning for local files.
_LOADING_OPTIONS = frozenset({"cache_dir", "download_mode", "features", "keep_in_memory", "num_proc"})
_HUB_OPTIONS = frozenset({"revision", "token", "use_auth_token", "trust_remote_code", "verification_mode", "streaming"})


class MirrorSplits(datasets.DatasetDict):  # type: ignore[misc]
    """The splits of a data set that are in the mirror; one that is not reads as empty and is noted in `absent`.

    The harness opens the split of its few-shot examples even when the prompt takes none. Whoever builds tasks reads
    `absent` afterwards and refuses those whose missing split is needed.
    """

    def __init__(self, splits: Mapping[str, datasets.Dataset], folder: Path, dataset: str) -> None:
        super().__init__(splits)
        self.folder = folder
        self.dataset = dataset
        self.absent: set[str] = set()

    def __missing__(self, split: str) -> datasets.Dataset:
        """Another common name of the split if it has one, else an empty split with the columns of the others."""
        alias = find_alias(split, self)
        if alias is not None:
            return self[alias]
        self.absent.add(split)
        columns = next(iter(self.values())).features
        return datasets.Dataset.from_dict({name: [] for name in columns}, features=columns)


@dataclass
class Mirror:
    """A folder that holds hub data sets by their ids, as `DIR/Rowan/hellaswag`.

    Attributes:
        root: The folder.
        task: The task that asks for data at the moment, for messages.
        opened: The data sets read so far.
        read_files: What reads local files: `datasets.load_dataset` as it was when the mirror was made.

    Raises:
        LowbitError: The folder does not exist.
    """

    root: Path
    task: str | None = None
    opened: list[MirrorSplits] = field(default_factory=list)
    read_files: Callable[..., Any] = field(default_factory=lambda: datasets.load_dataset)

    def __post_init__(self) -> None:
        self.root = Path(self.root).expanduser()
        if not self.root.is_dir():
            raise LowbitError(f"the data folder {self.root} does not exist: expected a folder of data sets by hub id")

    def holds(self, path: str) -> bool:
        """Whether the mirror has a folder for a data set."""
        return not Path(path).is_absolute() and ".." not in Path(path).parts and (self.root / path).is_dir()

    def load(
        self,
        path: str,
        name: str | None = None,
        data_dir: str | None = None,
        data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        split: Any = None,
        **options: Any,
    ) -> Any:
        """Load a data set of the mirror; arguments and answer are those of `datasets.load_dataset`.

        Raises:
            LowbitError: The data set, the configuration or the split is not there, or a file cannot be read.
        """
        dataset = f"{path}, configuration {name}" if name else path
        folder = self.root / path
        if not self.holds(path):
            raise LowbitError(
                f"data set {dataset}{self._asked_by()} is not in the data folder: expected {folder}; "
                f"put it there, for example with: hf download {path} --repo-type dataset --local-dir {folder}"
            )
        try:
            configuration = find_configuration(folder, name, data_dir=data_dir, data_files=data_files)
            return self._read(configuration, folder, dataset, split, options)
        except LowbitError as error:
            raise LowbitError(f"data set {dataset}{self._asked_by()}: {error}") from error

    def _asked_by(self) -> str:
        return f" (asked for by task {self.task!r})" if self.task else ""

    def _read(
        self, configuration: Configuration, folder: Path, dataset: str, split: Any, options: Mapping[str, Any]
    ) -> Any:
        known = {key: value for key, value in options.items() if key not in _HUB_OPTIONS}
        known.setdefault("features", _declared_features(folder, configuration.name))
        if split is None:
            names = list(configuration.splits)
            splits = MirrorSplits({n: self._read_split(configuration, n, n, known) for n in names}, folder, dataset)
            self.opened.append(splits)
            return splits
        base = str(split).split("[")[0].split("+")[0].strip()
        found = base if base in configuration.splits else find_alias(base, configuration.splits)
        if found is None:
            raise LowbitError(f"there is no split {base!r} in {folder}, which has {sorted(configuration.splits)}")
        return self._read_split(configuration, found, str(split).replace(base, found), known)

    def _read_split(
        self, configuration: Configuration, split: str, expression: str, options: Mapping[str, Any]
    ) -> datasets.Dataset:
        """Read one split; `expression` may cut it as in `test[:100]`."""
        files = configuration.splits[split]
        extension = data_extension(files[0])
        separator = {"sep": "\t"} if extension == ".tsv" else {}
        arguments = {**separator, **configuration.options, **options}
        try:
            return self.read_files(
                READERS[extension], data_files={split: [str(path) for path in files]}, split=expression, **arguments
            )
        except Exception as error:
            # The readers wrap what happened in errors of their own; the innermost one names the cause.
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise LowbitError(f"split {split!r} cannot be read from {files[0]}: {cause}") from error


def _declared_features(folder: Path, configuration: str) -> datasets.Features | None:
    """The column types that the data set's card declares, so that labels come out as they do from the hub."""
    try:
        infos = datasets.info.DatasetInfosDict.from_directory(str(folder))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    info = infos.get(configuration) or (infos.get("default") if len(infos) == 1 else None)
    return info.features if info is not None else None


def load_split(path: str, name: str | None, split: str, data_dir: Path | None, **hub_options: Any) -> Any:
    """Load one split of a hub data set, from the mirror when there is one.

    Args:
        path: Id of the data set.
        name: Its configuration.
        split: The split.
        data_dir: The mirror's folder; `None` asks the hub.
        **hub_options: What selects the same files on the hub, in place of the configuration.

    Raises:
        LowbitError: The data set cannot be had; the message says where it was looked for.
    """
    if data_dir is not None:
        return Mirror(data_dir).load(path, name, split=split)
    selection = hub_options or {"name": name}
    try:
        return datasets.load_dataset(path, split=split, **selection)
    except Exception as error:
        raise LowbitError(
            f"data set {path} cannot be loaded from the hub ({type(error).__name__}: {error}); with a local copy, give "
            "the folder that holds it by its id as --data_dir"
        ) from error
