"""Reads files that a stranger may have made: ordinary files of a bounded size, JSON of a bounded depth.

A file's name proves nothing: behind `config.json` may be a pipe that never ends, a device, or a file of a terabyte.
What these functions refuse they refuse as `OSError` (the file) or `ValueError` (its content), whose text completes
a sentence such as "FILE cannot be read: ..."; the caller, who knows what the file is for, makes the message of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MEBIBYTE = 1 << 20
LARGEST_JSON = 32 * MEBIBYTE
"""Bytes of a JSON file, unless the caller allows more or less."""
DEEPEST_JSON = 100
"""Lists and objects inside one another."""
MOST_CONTAINERS = 1_000_000
"""Lists and objects in one JSON text; each takes far more memory than the two characters that make it."""
LONGEST_INTEGER = 40
"""Digits of an integer: more than any counter or hash needs, and few enough for a float."""
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_LONG_INTEGER = re.compile(rf"\d{{{LONGEST_INTEGER + 1}}}")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def open_ordinary(path: Path, largest: int) -> Iterator[BinaryIO]:
    """Open a file for reading if it is an ordinary one of at most so many bytes; never wait for a pipe's writer.

    Args:
        path: The file; links are followed.
        largest: In bytes.

    Raises:
        OSError: It is absent, no ordinary file, or larger.
    """
    try:
        # O_NONBLOCK is for a pipe without a writer; it changes nothing for ordinary files.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # A NUL or half a character in the name.
        raise OSError(errno.EINVAL, f"no file can have this name: {error}", repr(str(path))) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for fits, name in _KINDS if fits(status.st_mode)), "something else")
            raise OSError(errno.EINVAL, f"it is {kind}, not an ordinary file", str(path))
        if status.st_size > largest:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes; the limit is {largest}", str(path))
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        yield file


def require_ordinary(path: Path) -> None:
    """Refuse what is no ordinary file, before compiled code opens it and waits where no signal reaches it.

    Args:
        path: The file; links are followed.

    Raises:
        OSError: It is absent, or no ordinary file.
    """
    with open_ordinary(path, sys.maxsize):
        pass


def read_bytes(path: Path, largest: int = LARGEST_JSON) -> bytes:
    """Read an ordinary file of at most so many bytes.

    Args:
        path: The file; links are followed.
        largest: In bytes.

    Raises:
        OSError: It is absent, no ordinary file, or larger.
    """
    with open_ordinary(path, largest) as file:
        content = file.read(largest + 1)
    if len(content) > largest:  # It grew, or its file system does not know its size.
        raise OSError(errno.EFBIG, f"it has more than {largest} bytes, which is the limit", str(path))
    return content


def read_text(path: Path, largest: int = LARGEST_JSON) -> str:
    """Read an ordinary UTF-8 file of at most so many bytes.

    Args:
        path: The file; links are followed.
        largest: In bytes.

    Raises:
        OSError: It is absent, no ordinary file, or larger.
        ValueError: It is no UTF-8.
    """
    return read_bytes(path, largest).decode("utf-8")


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Read an ordinary JSON file of at most so many bytes.

    Args:
        path: The file; links are followed.
        largest: In bytes.

    Raises:
        OSError: It is absent, no ordinary file, or larger.
        ValueError: It is no UTF-8, no JSON, or JSON that is refused, as `parse_json` says.
    """
    return parse_json(read_text(path, largest))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that is nested and counted within the limits of this module, and whose texts can be written again.

    Raises:
        ValueError: It is no JSON, nested too deep, has too many parts or too long integers, or half a character.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    containers = text.count("[") + text.count("{")
    if containers > MOST_CONTAINERS:
        raise ValueError(f"it has more than {MOST_CONTAINERS} lists and objects")
    try:
        value = json.loads(text, parse_int=_integer if _LONG_INTEGER.search(text) else None)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep") from error
    if containers > DEEPEST_JSON:
        require_depth(value)
    if "\\u" in text:
        _require_whole_characters(value)
    return value


def require_depth(value: Any, deepest: int = DEEPEST_JSON) -> None:
    """Refuse lists and objects inside one another more than so many deep.

    Args:
        value: A JSON value.
        deepest: How deep it may be.

    Raises:
        ValueError: It is deeper.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(deepest):
        inner = (part for outer in level for part in (outer.values() if isinstance(outer, dict) else outer))
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {deepest} deep")


def printable(text: object) -> str:
    """Return a text without what moves a terminal's cursor, colours, renames or reorders; its characters are named.

    Args:
        text: Anything that may hold names or values out of a stranger's file.
    """
    return _UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), str(text))


def is_file(path: Path) -> bool:
    """Say whether a path leads to an ordinary file; a name that no file can have leads to none.

    Args:
        path: The path; links are followed.
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Say whether a path leads to a directory; a name that no directory can have leads to none.

    Args:
        path: The path; links are followed.
    """
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def inside(path: Path, folder: Path) -> bool:
    """Say whether a path leads into a folder when all links are followed.

    Args:
        path: The path.
        folder: The folder; it may itself be reached by links.
    """
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # Links in a circle, or a name that no file can have.
        return False


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"it has an integer of {len(digits)} digits; the limit is {LONGEST_INTEGER}")
    return int(digits)


def _require_whole_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("it has half a character (a lone surrogate) in a text") from error
