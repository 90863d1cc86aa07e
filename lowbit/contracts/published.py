"""Published results as data: what papers report, in which table, and under which protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Evidence = Literal["read", "second-hand", "unverified"]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

DEFAULT_TOLERANCE = 0.05
"""Relative difference that passes where a cell names none: wider than the spread of calibration seeds (3.5 %)."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PublishedProtocol(_Record):
    """How numbers were obtained; a key that is `None` is not stated and leaves the choice to lowbit's default."""

    context_length: int | None = Field(None, ge=2, description="tokens in a window of a token perplexity")
    calibration: Text | None = Field(None, description="registered calibration source")
    n_samples: int | None = Field(None, ge=1, description="calibration sequences")
    seq_len: int | None = Field(None, ge=2, description="tokens in a calibration sequence")
    seed: int | None = Field(None, ge=0, description="seed of the calibration sample")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompts of lm-eval's tasks")

    def changed_by(self, other: PublishedProtocol) -> PublishedProtocol:
        """Return this protocol with the keys that another one states in the place of its own."""
        return self.model_copy(update=other.model_dump(exclude_none=True))


class PublishedCell(_Record):
    """One number of one table.

    Accuracies, exact matches and F1 scores are in percent, as papers print them; perplexities are as they are.
    """

    label: Text = Field(description="the row as its table names it")
    model: Text = Field(description="hub id; in files of one's own also a folder or its name, or * for every model")
    method: Text | None = Field(description="registered method, or null where lowbit has none")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method's quantizer")
    tasks: tuple[Text, ...] = Field(min_length=1, description="one task, or several whose mean is the number")
    metric: Text = Field(description="token_perplexity, acc, acc_norm, or another metric of lm-eval")
    value: Positive
    parent: Positive | None = Field(None, description="the unquantized model's number in the same table")
    nominal_bits: Positive | None = Field(None, description="bits a weight as the authors count them")
    source: Text = Field(description="paper and table")
    relation: str = Field(
        "own",
        pattern=r"^(own|(rerun|quoted) by \S.*)$",
        description="own: by the method's authors; else who ran or quoted it",
    )
    evidence: Evidence = Field("read", description="whether the number was read in its source")
    protocol: PublishedProtocol = Field(
        default_factory=PublishedProtocol, description="where it differs from the file's protocol"
    )
    tolerance: float | None = Field(None, gt=0, le=1, description="relative difference that passes")
    note: str = Field("", description="what a reader must know; with a null method, why lowbit has none")

    @model_validator(mode="after")
    def _check_method(self) -> PublishedCell:
        if self.method is None and (not self.note or self.options):
            raise ValueError("a cell without a method needs a note that says why, and takes no options")
        return self

    @property
    def identity(self) -> str:
        """What no two cells of a file share."""
        protocol = self.protocol.model_dump(exclude_none=True)
        parts = [self.model, self.method, self.options, self.tasks, self.metric, self.source, self.relation, protocol]
        # Rows that lowbit cannot run differ in nothing but their label.
        return json.dumps([*parts, self.label if self.method is None else ""], sort_keys=True)


class PublishedResults(_Record):
    """What was published about one method, and the protocol that its cells share."""

    version: Literal[1]
    paper: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name for --paper")
    title: Text
    arxiv: str | None = Field(None, pattern=r"^\d{4}\.\d{4,5}$")
    protocol: PublishedProtocol
    protocol_notes: tuple[Text, ...] = ()
    tolerance: float = Field(DEFAULT_TOLERANCE, gt=0, le=1, description="for cells that name none")
    cells: tuple[PublishedCell, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_duplicates(self) -> PublishedResults:
        seen: dict[str, int] = {}
        for number, cell in enumerate(self.cells):
            first = seen.setdefault(cell.identity, number)
            if first != number:
                raise ValueError(f"cells {first} and {number} are the same: {cell.label!r} on {cell.model}")
        return self

    def protocol_of(self, cell: PublishedCell) -> PublishedProtocol:
        """Return the whole protocol of a cell."""
        return self.protocol.changed_by(cell.protocol)

    def tolerance_of(self, cell: PublishedCell) -> float:
        """Return the relative difference with which a cell passes."""
        return self.tolerance if cell.tolerance is None else cell.tolerance


@dataclass(frozen=True)
class PublishedFile:
    """Where a plugin keeps the results that were published about a method.

    Args:
        path: A JSON file of `PublishedResults`, named after its paper: `NAME.json`.
        description: One line for `lowbit plugins list`.
    """

    path: Path
    description: str = ""

    @property
    def name(self) -> str:
        """The paper's name, as users write it after `--paper`."""
        return self.path.stem
