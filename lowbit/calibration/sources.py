"""The calibration texts that the field uses, by hub id; training splits only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from lowbit.contracts import CalibrationSource, DataAccess
from lowbit.hookspecs import hookimpl

C4_DOCUMENTS = 4096


class HubSource(CalibrationSource):
    """A split of a hub data set whose rows are documents."""

    path: ClassVar[str]
    configuration: ClassVar[str]
    column: ClassVar[str] = "text"
    most_documents: ClassVar[int | None] = None
    hub_options: ClassVar[dict[str, Any]] = {}

    def documents(self, access: DataAccess) -> Iterator[str]:
        """Yield the documents of the training split."""
        from lowbit.hub import load_split

        rows = load_split(self.path, self.configuration, "train", access.data_dir, **self.hub_options)
        count = len(rows) if self.most_documents is None else min(len(rows), self.most_documents)
        yield from rows.select(range(count))[self.column]


class WikiText2(HubSource):
    """WikiText-2, raw, training split, lines joined by blank lines as in GPTQ's code."""

    name: ClassVar[str] = "wikitext2"
    domain: ClassVar[str] = "wikitext"
    path: ClassVar[str] = "Salesforce/wikitext"
    configuration: ClassVar[str] = "wikitext-2-raw-v1"


class C4(HubSource):
    """The first documents of C4's first training shard."""

    name: ClassVar[str] = "c4"
    domain: ClassVar[str] = "c4"
    path: ClassVar[str] = "allenai/c4"
    configuration: ClassVar[str] = "en"
    most_documents: ClassVar[int | None] = C4_DOCUMENTS
    hub_options: ClassVar[dict[str, Any]] = {"data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}}


class PennTreebank(HubSource):
    """Penn Treebank, training split, sentences joined by spaces as in GPTQ's code."""

    name: ClassVar[str] = "ptb"
    domain: ClassVar[str] = "ptb"
    separator: ClassVar[str] = " "
    path: ClassVar[str] = "ptb-text-only/ptb_text_only"
    configuration: ClassVar[str] = "penn_treebank"
    column: ClassVar[str] = "sentence"
    hub_options: ClassVar[dict[str, Any]] = {
        "revision": "refs/convert/parquet",
        "data_files": {"train": "penn_treebank/train/*.parquet"},
    }


@hookimpl
def lowbit_calibration_sources() -> Iterator[type[CalibrationSource]]:
    """Register the sources."""
    yield WikiText2
    yield C4
    yield PennTreebank
