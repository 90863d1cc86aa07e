"""Reads calibration text that a stranger may have made: .txt and .jsonl, plain or packed with gzip."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from lowbit.calibration.token_files import most_unpacked
from lowbit.errors import LowbitError
from lowbit.untrusted import MEBIBYTE, open_ordinary, parse_json

TEXT_SUFFIXES = (".txt", ".txt.gz")
LINES_SUFFIXES = (".jsonl", ".jsonl.gz")
LARGEST_FILE = 1024 * MEBIBYTE
"""Bytes of a text file, packed or not."""
MOST_LINES = 2_000_000
"""Lines of a file, empty ones included."""
LONGEST_LINE = 64 * MEBIBYTE
"""Bytes of a line of JSON."""


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a file: the whole text, or the entry `text` of each line.

    Args:
        path: A .txt or .jsonl file; both also .gz.

    Raises:
        LowbitError: It is absent, damaged, too large, or no UTF-8; or a line is no object with a text.
    """
    try:
        with _opened(path) as (file, most):
            if path.name.endswith(TEXT_SUFFIXES):
                yield _decoded(_at_most(file.read(most + 1), most))
                return
            read = 0
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                read += len(_at_most(line, LONGEST_LINE))
                if number > MOST_LINES:
                    raise ValueError(f"it has more than {MOST_LINES} lines, which is the limit")
                if read > most:
                    raise ValueError(f"it unpacks to more than {most} bytes, which is the limit for a file of its size")
                if line.strip():
                    yield _text_of(line, path, number)
    except OSError as error:
        raise LowbitError(f"calibration file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zlib.error) as error:
        raise LowbitError(f"calibration file {path} cannot be read: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file, and say how many bytes it may give."""
    with open_ordinary(path, LARGEST_FILE) as file:
        if path.suffix != ".gz":
            yield file, LARGEST_FILE
            return
        with gzip.open(file, "rb") as unpacked:
            yield cast(BinaryIO, unpacked), most_unpacked(path.stat().st_size)


def _at_most(content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise ValueError(f"a line or the text has more than {most} bytes, which is the limit here")
    return content


def _decoded(content: bytes) -> str:
    """Return text whose lines end alike, as a text file opened by Python has them."""
    return io.IncrementalNewlineDecoder(None, translate=True).decode(content.decode("utf-8"), final=True)


def _text_of(line: bytes, path: Path, number: int) -> str:
    try:
        value: Any = parse_json(line)
    except ValueError as error:
        raise LowbitError(f"calibration file {path}, line {number}, is no JSON: {error}") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise LowbitError(f'calibration file {path}, line {number}: expected an object with a string under "text"')
    return text
