"""Reads a token file (.npz) that a stranger may have made: one array of integers, as large as the file can honestly be.

numpy's own reader makes room for whatever shape a header names, and unpacks whatever a zip holds; this one looks first.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from lowbit.untrusted import MEBIBYTE, open_ordinary, printable

TokenArray = np.ndarray[tuple[int, int], np.dtype[Any]]
LARGEST_FILE = 4096 * MEBIBYTE
"""Bytes of a token file."""
EXPANSION = 20
"""How many times as large as its file unpacked data may be; token ids and text pack far less well."""
SMALL = 64 * MEBIBYTE
"""Bytes that unpacked data may have whatever the size of its file."""
NAME = "tokens"
_LARGEST_DIRECTORY = MEBIBYTE
_END, _LARGE_END = b"PK\x05\x06", b"PK\x06\x07"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_token_file(path: Path) -> TokenArray:
    """Return the array `tokens`, or the only array of the file, whatever its name: integers [samples, length].

    Args:
        path: The .npz file.

    Raises:
        OSError: It is absent, no ordinary file, or too large.
        ValueError: It is damaged, or holds something else.
    """
    with open_ordinary(path, LARGEST_FILE) as file:
        size = path.stat().st_size
        _require_small_directory(file)
        try:
            with zipfile.ZipFile(file) as archive:
                return _read_member(archive, _chosen(archive), most_unpacked(size))
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"it is no whole .npz file: {error}") from error


def most_unpacked(size: int) -> int:
    """Return how many bytes may come out of a packed file.

    Args:
        size: Bytes of the file.
    """
    return max(SMALL, EXPANSION * size)


def _require_small_directory(file: BinaryIO) -> None:
    """Refuse an archive of thousands of entries before a list is made of them."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 2**16 - 22))
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        raise ValueError("it is no whole .npz file")
    (directory,) = struct.unpack_from("<L", tail, end + 12)
    if directory > _LARGEST_DIRECTORY or tail[max(0, end - 20) : end].startswith(_LARGE_END):
        raise ValueError("it holds more arrays than a token file has")
    file.seek(0)


def _chosen(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    entries = archive.infolist()
    names = [entry.filename.removesuffix(".npy") for entry in entries]
    if len(entries) != 1 and names.count(NAME) != 1:
        told = ", ".join(printable(name[:40]) for name in names[:5])
        raise ValueError(f"it has no array named '{NAME}', but {told or 'none'}")
    return entries[0] if len(entries) == 1 else entries[names.index(NAME)]


def _header(stream: Any, version: tuple[int, int]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        return _HEADERS[version](stream)
    except (tokenize.TokenError, RecursionError, MemoryError, SyntaxError) as error:
        raise ValueError("the description of its array cannot be read") from error


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> TokenArray:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed in another way than numpy packs")
    if entry.file_size > most:
        raise ValueError(f"its array unpacks to {entry.file_size} bytes; the limit for a file of its size is {most}")
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"its array has the unknown format {version}")
        shape, columns_first, dtype = _header(stream, version)
        if len(shape) != 2 or dtype.kind not in "iu" or min(shape) < 1:
            raise ValueError(f"its array must be integers [samples, length]; it is {dtype} {shape}")
        wanted = math.prod(shape) * dtype.itemsize
        if wanted > entry.file_size:
            raise ValueError(f"its array of shape {shape} would have {wanted} bytes; the file holds fewer")
        content = stream.read(wanted)
        if len(content) != wanted or stream.read(1):  # Reading to the end also checks the sum of the bytes.
            raise ValueError("its array has not the size that it names")
    return np.frombuffer(content, dtype).reshape(shape[0], shape[1], order="F" if columns_first else "C")
