"""Every command and option says what it is for, and the page on the command line shows all of them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lowbit.cli.main import COMMANDS, cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its whole name, groups included."""
    waiting: list[tuple[str, click.Command]] = [("lowbit", cli)]
    while waiting:
        name, command = waiting.pop()
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for below in command.list_commands(context):
                found = command.get_command(context, below)
                assert found is not None
                waiting.append((f"{name} {below}", found))


def names() -> dict[str, click.Command]:
    return dict(sorted(all_commands()))


def test_every_command_of_the_list_is_there() -> None:
    assert {f"lowbit {name}" for name in COMMANDS} <= names().keys()


def test_every_command_and_every_option_has_a_help_text() -> None:
    for name, command in names().items():
        assert command.help, f"{name} has no help text"
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name}: {'/'.join(option.opts)} has no help text"


def test_a_help_text_is_a_sentence() -> None:
    for name, command in names().items():
        first = (command.help or "").strip().split("\n\n")[0]
        assert first.endswith((".", ":")) or "`" in first, f"{name}: {first}"


def test_the_built_page_shows_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    markdown = pytest.importorskip("markdown", reason="the documentation's tools are not installed: lowbit[docs]")
    pytest.importorskip("mkdocs_click", reason="the documentation's tools are not installed: lowbit[docs]")
    text = PAGE.read_text(encoding="utf-8")
    built = markdown.markdown(text, extensions=["mkdocs-click", "fenced_code", "attr_list"])
    shown = html.unescape(re.sub(r"<[^>]+>", "", built))
    for name, command in names().items():
        usage = re.search(rf"{name}(?: |\n)", shown)
        assert usage, f"docs/cli.md does not show {name}"
        for option in command.params:
            for spelling in option.opts if isinstance(option, click.Option) else ():
                assert spelling in shown, f"docs/cli.md does not show {spelling} of {name}"
