"""The texts of the papers' token perplexities: WikiText-2, PTB and C4, and how their documents are joined."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError

DEFAULT_CONTEXT_LENGTH = 2048
"""The context of most published numbers, in tokens."""


@dataclass(frozen=True)
class PerplexityCorpus:
    """A data set and the way in which its documents become one text.

    Attributes:
        path: The data set's id on the hub.
        name: Its configuration.
        split: The split that is evaluated.
        column: The column that holds the text.
        separator: What stands between documents.
        max_documents: How many documents are used, None for all.
        max_tokens: How many tokens are used, None for all.
        hub_options: What selects the same files on the hub, where the data set's own configuration cannot be read
            or would fetch far more than is needed.
    """

    path: str
    name: str
    split: str
    column: str
    separator: str
    max_documents: int | None = None
    max_tokens: int | None = None
    hub_options: Mapping[str, Any] = field(default_factory=dict)


CORPORA: Mapping[str, PerplexityCorpus] = {
    "wikitext2_ppl": PerplexityCorpus("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text", "\n\n"),
    "ptb_ppl": PerplexityCorpus(
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        "test",
        "sentence",
        " ",
        hub_options={
            "revision": "refs/convert/parquet",
            "data_files": {"test": "penn_treebank/test/*.parquet"},
        },
    ),
    "c4_ppl": PerplexityCorpus(
        "allenai/c4",
        "en",
        "validation",
        "text",
        " ",
        max_documents=1100,
        max_tokens=256 * 2048,
        hub_options={"data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"}},
    ),
}


@dataclass(frozen=True)
class PerplexityTask:
    """A token perplexity to evaluate.

    Attributes:
        name: The name that was asked for, such as `wikitext2_ppl` or `wikitext2_ppl@4096`.
        corpus: The data set.
        text: Its documents, joined.
        documents: How many documents those are.
        context_length: Tokens in a window as asked for, None for the default of the model.
    """

    name: str
    corpus: PerplexityCorpus
    text: str
    documents: int
    context_length: int | None

    @property
    def base_name(self) -> str:
        """The name without its context length."""
        return self.name.partition("@")[0]

    def resolve_context_length(self, config: Any) -> int:
        """Tokens in a window for a model: as asked for, else min(2048, the model's positions).

        Args:
            config: The model's transformers configuration.

        Raises:
            LowbitError: More tokens are asked for than the model has positions.
        """
        positions = model_positions(config)
        if self.context_length is None:
            return min(DEFAULT_CONTEXT_LENGTH, positions or DEFAULT_CONTEXT_LENGTH)
        if positions is not None and self.context_length > positions:
            raise LowbitError(
                f"{self.name} asks for a context of {self.context_length} tokens, but the model has {positions} "
                f"positions: use {self.base_name}@{positions} or less"
            )
        return self.context_length


def model_positions(config: Any) -> int | None:
    """The number of positions that a model was built for, None when its configuration sets no bound."""
    nested = getattr(config, "text_config", None)
    for source in (nested, config):
        for attribute in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"):
            value = getattr(source, attribute, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def split_perplexity_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the token perplexities from the names that the harness knows, each once and in order.

    Raises:
        LowbitError: A context length is no number of at least two tokens.
    """
    ours: list[str] = []
    others: list[str] = []
    for name in dict.fromkeys(names):
        base, at, length = name.partition("@")
        if base not in CORPORA:
            others.append(name)
            continue
        if at and (not re.fullmatch(r"[0-9]+", length) or int(length) < 2):
            raise LowbitError(f"{name!r} needs a context length of at least 2 tokens, as in {base}@2048")
        ours.append(name)
    return ours, others


def load_perplexity_tasks(names: Sequence[str], data_dir: str | None) -> tuple[PerplexityTask, ...]:
    """Load the texts of token perplexities.

    Args:
        names: As `split_perplexity_names` returns them.
        data_dir: A local mirror, which holds data sets under their own configurations; None asks the hub.

    Raises:
        LowbitError: A data set cannot be loaded, or lacks its column.
    """
    texts: dict[str, tuple[str, int]] = {}
    tasks = []
    for name in names:
        base, _, length = name.partition("@")
        if base not in texts:
            texts[base] = _load_text(base, CORPORA[base], data_dir)
        text, documents = texts[base]
        tasks.append(PerplexityTask(name, CORPORA[base], text, documents, int(length) if length else None))
    return tuple(tasks)


def _load_text(task: str, corpus: PerplexityCorpus, data_dir: str | None) -> tuple[str, int]:
    from lowbit.hub import load_split  # costs a second that quantization need not spend

    mirror = None if data_dir is None else Path(data_dir)
    try:
        rows = load_split(corpus.path, corpus.name, corpus.split, mirror, **corpus.hub_options)
    except LowbitError as error:
        raise LowbitError(f"task {task!r}: {error}") from error
    if corpus.column not in rows.column_names:
        raise LowbitError(
            f"task {task!r}: data set {corpus.path} has no column {corpus.column!r}; it has {rows.column_names}"
        )
    if corpus.max_documents is not None:
        rows = rows.select(range(min(corpus.max_documents, len(rows))))
    documents = list(rows[corpus.column])
    return corpus.separator.join(documents), len(documents)
