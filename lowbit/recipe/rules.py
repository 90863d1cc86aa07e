"""Rules: exceptions by module name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import regex
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from lowbit.errors import LowbitError

MOST_SECONDS = 1.0
"""That a pattern may take for one name; some patterns would take years."""
MOST_CHARACTERS = 1000
MOST_REPEATS = 10_000
"""All counts of a pattern multiplied, as they are where one stands inside another; each repeat takes memory."""
_COUNTS = re.compile(r"\{(\d*),?(\d*)\}")


class Rule(BaseModel):
    """What happens to the layers whose name matches; the first rule that matches a layer wins.

    `match` is a shell-style pattern (`*` also crosses dots), a plain name or its last parts (`lm_head`,
    `mlp.down_proj`), or a regular expression after `re:`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    match: str
    skip: bool = Field(
        False, description="leave these layers as they are", validation_alias=AliasChoices("skip", "ignore")
    )
    quantizer: dict[str, Any] | None = Field(
        None, description="options that differ here; with `name`, another quantizer"
    )

    @model_validator(mode="after")
    def _does_one_thing(self) -> Rule:
        if self.skip == (self.quantizer is not None):
            raise ValueError(f"rule for {self.match!r} must either set `skip: true` or give a `quantizer`, not both")
        if not isinstance((self.quantizer or {}).get("name", ""), str):
            raise ValueError(f"rule for {self.match!r}: the quantizer's `name` must be a string")
        if self.match.startswith("re:"):
            _require_small(self.match)
            try:
                regex.compile(self.match[3:])
            except regex.error as error:
                raise ValueError(f"rule pattern {self.match!r} is no regular expression: {error}") from error
        return self

    def matches(self, name: str) -> bool:
        """Say whether a layer's name matches."""
        if self.match.startswith("re:"):
            try:
                return regex.search(self.match[3:], name, timeout=MOST_SECONDS) is not None
            except TimeoutError as error:
                raise LowbitError(
                    f"rule pattern {self.match!r} takes over {MOST_SECONDS} s for the name of one layer; simplify it"
                ) from error
        return fnmatch.fnmatchcase(name, self.match) or name == self.match or name.endswith("." + self.match)


def _require_small(match: str) -> None:
    """Refuse a pattern that takes gigabytes when it is compiled.

    Raises:
        ValueError: It is too long, or repeats too often.
    """
    if len(match) > MOST_CHARACTERS:
        raise ValueError(f"a rule pattern has {len(match)} characters; at most {MOST_CHARACTERS} are read")
    repeats = 1
    for least, most in _COUNTS.findall(match):
        repeats *= max(1, *(int(count[:9]) for count in (least, most) if count), 1)
    if repeats > MOST_REPEATS:
        raise ValueError(f"rule pattern {match!r:.200}: its counts multiply to more than {MOST_REPEATS}; use * or +")


def first_match(rules: Sequence[Rule], name: str) -> int | None:
    """Return the position of the first rule that matches a name, or `None`."""
    return next((position for position, rule in enumerate(rules) if rule.matches(name)), None)
