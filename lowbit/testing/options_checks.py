"""Checks of a class with options: that both are documented, and that the options hold together."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from lowbit.testing.code import import_line
from lowbit.testing.conformance import Conformance
from lowbit.testing.failure import ANY_ERROR, ConformanceError


class OptionsChecks(Conformance):
    """What users are told of a quantizer or a loss: `lowbit plugins show`, and the refusal of a mistyped option."""

    checked: ClassVar[str] = "quantizer"

    def _code(self, line: str) -> str:
        item = self._item()
        return f"{import_line(item)}\n{item.__name__}.{line}"

    def _item(self) -> Any:
        return getattr(type(self), self.checked)

    def test_it_says_what_it_is(self) -> None:
        """The class and its `Config` have docstrings of their own."""
        item = self._item()
        if not (item.__dict__.get("__doc__") or "").strip():
            raise ConformanceError(
                f"a docstring that says what {item.__name__} does: `lowbit plugins list` shows it",
                "none",
                self._code("__doc__"),
            )
        if not (item.Config.__doc__ or "").strip():
            raise ConformanceError("a docstring of its Config", "none", self._code("Config.__doc__"))

    def test_every_option_is_documented(self) -> None:
        """`lowbit plugins show` prints the description of each."""
        undocumented = [name for name, field in self._item().Config.model_fields.items() if not field.description]
        if undocumented:
            raise ConformanceError(
                "a description of every option: `name: type = Field(default, description=...)`",
                f"none of {', '.join(undocumented)}",
                self._code(f"Config.model_fields[{undocumented[0]!r}]"),
            )

    def test_defaults_validate_and_survive_json(self) -> None:
        """A recipe stores every option as JSON, and is run again from there."""
        config = self._item().Config
        try:
            made = config()
            again = config.model_validate(json.loads(json.dumps(made.model_dump(mode="json"))))
        except ANY_ERROR as error:  # whatever the code under test raises
            raise ConformanceError(
                "options that have valid defaults and go through JSON",
                " ".join(f"{type(error).__name__}: {error}".split()),
                self._code("Config()"),
            ) from error
        if again != made:
            raise ConformanceError(
                f"the same options after a way through JSON: {made!r}", repr(again), self._code("Config()")
            )

    def test_options_have_a_schema(self) -> None:
        """`lowbit recipe` describes options to editors by their JSON schema."""
        try:
            self._item().Config.model_json_schema()
        except ANY_ERROR as error:  # whatever the code under test raises
            raise ConformanceError(
                "options of types that JSON schema knows",
                " ".join(f"{type(error).__name__}: {error}".split()),
                self._code("Config.model_json_schema()"),
            ) from error
