"""Finds the code blocks of Markdown pages, and runs them as a reader would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[\w-]*)[^\n`]*$")
NOT_RUN = re.compile(r"^<!-- not run: *(?P<reason>.*?) *-->$")
PYTHON_FILE = re.compile(r"^# (?P<name>\w+\.py)\b")


@dataclass(frozen=True)
class CodeBlock:
    """One fenced block.

    Args:
        language: What stands behind the fence; empty for none.
        text: The lines between the fences.
        line: Where it begins, from 1.
        reason: Why it is not run; `None` if it is, empty if the marker gives none.
    """

    language: str
    text: str
    line: int
    reason: str | None

    @property
    def file_name(self) -> str | None:
        """The file that a Python block says it is, in a comment on its first line."""
        found = PYTHON_FILE.match(self.text)
        return found["name"] if found and self.language == "python" else None

    def commands(self) -> list[str]:
        """Return the commands of a shell block, continued lines joined; comments and blank lines left out."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def code_blocks(page: Path) -> list[CodeBlock]:
    """Return the fenced blocks of a page, in order.

    Raises:
        ValueError: A fence is never closed.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    found = []
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        closing = opening["indent"] + opening["fence"]
        end = next((at for at in range(number + 1, len(lines)) if lines[at].rstrip() == closing), None)
        if end is None:
            raise ValueError(f"{page.name}, line {number + 1}: the code block is never closed")
        indent = len(opening["indent"])
        text = "".join(line[indent:] + "\n" for line in lines[number + 1 : end])
        found.append(CodeBlock(opening["language"], text, number + 1, _reason(lines, number)))
        number = end + 1
    return found


def _reason(lines: list[str], number: int) -> str | None:
    above = lines[number - 1].strip() if number else ""
    marker = NOT_RUN.match(above)
    return marker["reason"] if marker else None


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    kept, fence = [], ""
    for line in page.read_text(encoding="utf-8").splitlines():
        opening = FENCE.match(line)
        if not fence and opening:
            fence = opening["indent"] + opening["fence"]
        elif fence and line.rstrip() == fence:
            fence = ""
        elif not fence:
            kept.append(line)
    return "\n".join(kept)
