"""Lets the harness's tasks read a local mirror of hub data sets as if it were the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
from lm_eval.api.task import ConfigurableTask

from lowbit.hub.files import BUILDERS as READERS
from lowbit.hub.mirror import Mirror

# Readers of local files, which tasks name in place of a data set.
_READER_NAMES = frozenset({*READERS.values(), "pandas", "imagefolder", "audiofolder", "webdataset", "generator"})


@contextmanager
def offline_mirror(data_dir: str | Path) -> Iterator[Mirror]:
    """Let everything that asks `datasets` for a hub data set read the mirror instead, and nothing use the network.

    The tasks themselves, their prompts, metrics and configurations stay as they are.
    """
    mirror = Mirror(Path(data_dir))
    load_from_hub = datasets.load_dataset
    download = ConfigurableTask.download
    active = True

    def load_dataset(path: str, name: str | None = None, *arguments: Any, **options: Any) -> Any:
        if not active:
            # A task's module may keep this function beyond the mirror's life: do what is right by then.
            return datasets.load_dataset(path, name, *arguments, **options)
        if not _is_hub_id(mirror, path):
            return load_from_hub(path, name, *arguments, **options)
        positional = dict(zip(("data_dir", "data_files", "split"), arguments, strict=False))
        return mirror.load(path, name, **positional, **options)

    def download_named(task: ConfigurableTask, *arguments: Any, **options: Any) -> None:
        mirror.task = task.config.task or mirror.task
        download(task, *arguments, **options)

    with ExitStack() as changes:
        changes.enter_context(_replaced(datasets, "load_dataset", load_dataset))
        changes.enter_context(_replaced(ConfigurableTask, "download", download_named))
        changes.enter_context(_replaced(datasets.config, "HF_HUB_OFFLINE", True))
        changes.enter_context(_replaced(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
        changes.enter_context(_offline_environment())
        try:
            yield mirror
        finally:
            active = False


def _is_hub_id(mirror: Mirror, path: str) -> bool:
    """Whether a name means a data set of the hub and not a reader or a place in the file system."""
    if mirror.holds(path):
        return True
    return path not in _READER_NAMES and not Path(path).exists()


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def _offline_environment() -> Iterator[None]:
    """Tell processes that are started meanwhile to stay off the network too."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
