"""Token files and calibration text from a stranger: never unpickled, never unpacked without bound, ids in range."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.cases import EVIL, Outcomes, generator, mutated_bytes, mutated_trees, number, watching_opens
from numpy.lib import format as npy

from lowbit.calibration.tokens import CalibrationTokens, TokenRequest, load_calibration, token_file_shape
from lowbit.contracts import DataAccess
from lowbit.contracts.training import GenerationSettings
from lowbit.distillation.generated_tokens import GenerationRequest, read_generated, write_generated
from lowbit.errors import LowbitError

VOCABULARY = 50
REQUEST = TokenRequest(n_samples=4, seq_len=8, vocabulary=VOCABULARY, seed=0)
HONEST = (np.arange(8 * 16) % VOCABULARY).astype("<i4").reshape(8, 16)


def load(path: Path) -> CalibrationTokens:
    """Load a file as calibration data of a small vocabulary."""
    return load_calibration(str(path), _unknown, _encode, REQUEST, DataAccess())


def _unknown(name: str) -> Any:
    raise LowbitError(f"there is no source {name}")


def _encode(text: str) -> list[int]:
    return [ord(character) % VOCABULARY for character in text]


def in_range(found: CalibrationTokens) -> bool:
    """Say whether tokens are what was asked for."""
    tokens = found.tokens
    return tuple(tokens.shape) == (4, 8) and int(tokens.min()) >= 0 and int(tokens.max()) < VOCABULARY


def saved(array: np.ndarray[Any, Any]) -> bytes:
    """Return a token file of one array."""
    file = io.BytesIO()
    np.savez_compressed(file, tokens=array)
    return file.getvalue()


def archive(members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return file.getvalue()


def header(shape: object, dtype: object = "<i4", order: object = False, magic: bytes = npy.magic(1, 0)) -> bytes:
    """Return the beginning of an .npy file that says anything."""
    told = f"{{'descr': {dtype!r}, 'fortran_order': {order!r}, 'shape': {shape!r}, }}".encode()
    return magic + struct.pack("<H", len(told)) + told


def hostile_arrays() -> Iterator[tuple[str, bytes]]:
    """Yield token files that must be refused."""
    for dtype in ("<f4", "<f8", "?", "<U8", "S8", "<c16", "<M8[s]", "V4"):
        yield dtype, saved(np.zeros((8, 16), dtype))
    structured = np.zeros((8, 16), [("a", "<i4")])
    yield "structured", saved(structured)
    for shape in ((), (4,), (0, 16), (8, 0), (2, 2, 2), (3, 16), (8, 7)):
        yield f"shape {shape}", saved(np.zeros(shape, "<i4"))
    for value in (-1, VOCABULARY, 2**31 - 1, -(2**31)):
        changed = HONEST.copy()
        changed[1, 2] = value
        yield f"id {value}", saved(changed)
    yield "unsigned", saved(np.full((8, 16), 2**64 - 1, np.uint64))
    objects = np.empty((8, 16), object)
    objects[:] = 1
    yield "objects", archive({"tokens.npy": header((8, 16), "|O") + pickle.dumps(objects)})
    for shape in ((2**40, 2**20), (10**30, 1), (-1, 16), (8, -16), (8.0, 16), ("8", 16), [8, 16], 8, (2**62, 2**62)):
        yield f"header {shape}", archive({"tokens.npy": header(shape) + HONEST.tobytes()})
    for dtype in ("<i400", "O", "", None, 5, [("a", "O")], "<i4\x00", "V1000000000", ("<i4", (1000,))):
        yield f"descr {dtype}", archive({"tokens.npy": header((8, 16), dtype) + HONEST.tobytes()})
    yield "order", archive({"tokens.npy": header((8, 16), order="yes") + HONEST.tobytes()})
    for magic in (npy.magic(3, 0), npy.magic(9, 9), b"\x93NUMPZ\x01\x00", b""):
        yield f"magic {magic!r}", archive({"tokens.npy": header((8, 16), magic=magic) + HONEST.tobytes()})
    yield (
        "header of calls",
        archive({"tokens.npy": npy.magic(1, 0) + struct.pack("<H", 22) + b"__import__('os').x()  "}),
    )
    yield "header nested", archive({"tokens.npy": npy.magic(1, 0) + struct.pack("<H", 9000) + b"(" * 9000})
    yield "short", archive({"tokens.npy": header((8, 16)) + HONEST.tobytes()[:-1]})
    yield "long", archive({"tokens.npy": header((8, 16)) + HONEST.tobytes() + b"\x00"})
    yield "no array", archive({})
    yield "not npy", archive({"tokens.npy": b"hello"})
    yield "two", archive({"a.npy": b"", "b.npy": b""})
    yield "traversal", archive({"../../../tmp/a.npy": b"", "/etc/b.npy": b""})
    yield "control", archive({"\x1b]0;x\x07.npy": b"", "b.npy": b""})
    yield "bzip2", archive({"tokens.npy": header((8, 16)) + HONEST.tobytes()}, zipfile.ZIP_BZIP2)
    yield "many", archive({f"{n}.npy": b"" for n in range(30_000)})
    rows = 2**20
    yield "bomb", archive({"tokens.npy": header((rows, 128)) + bytes(rows * 128 * 4)})
    for content in (b"", b"PK\x05\x06", b"PK\x05\x06" + bytes(18), pickle.dumps([1]), b"\x93NUMPY", b"\x00" * 1000):
        yield f"bytes {content[:8]!r}", content


def test_a_token_file_of_anything_else_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    outcomes = Outcomes("token files", seconds=3)
    path = tmp_path / "tokens.npz"
    with watching_opens() as seen:
        for what, content in hostile_arrays():
            path.write_bytes(content)
            outcomes.check(what, lambda: load(path), lambda _: False)
    outcomes.finish(60)
    assert [told for told in seen if told.startswith(("pickle", "os.system", "subprocess"))] == []


def test_damaged_bytes_of_a_token_file_are_refused_or_still_tokens(tmp_path: Path) -> None:
    outcomes = Outcomes("bytes of token files")
    path = tmp_path / "tokens.npz"
    plain = io.BytesIO()
    np.savez(plain, tokens=HONEST)
    for name, content in (("packed", saved(HONEST)), ("plain", plain.getvalue())):
        for what, data in mutated_bytes(content, generator(name), number(300)):
            path.write_bytes(data)
            outcomes.check(what, lambda: load(path), in_range)
            outcomes.check(what, lambda: token_file_shape(path), lambda shape: shape == (8, 16))
    outcomes.finish(200)


def test_an_honest_token_file_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    for array in (HONEST, HONEST.astype(">i8"), HONEST.astype("u1"), np.asfortranarray(HONEST)):
        (tmp_path / "tokens.npz").write_bytes(saved(array))
        assert load(tmp_path / "tokens.npz").tokens.tolist() == HONEST[:4, :8].tolist()


def hostile_texts() -> Iterator[tuple[str, str, bytes]]:
    """Yield a file's ending, what is in it, and its bytes, all to be refused."""
    for what, content in (
        ("binary", bytes(range(256)) * 10),
        ("latin", b"caf\xe9 " * 100),
        ("utf-16", ("text " * 100).encode("utf-16")),
        ("empty", b""),
        ("cut character", b"text " * 100 + b"\xe2\x82"),
    ):
        for ending in ("txt", "jsonl"):
            yield ending, what, content
            yield f"{ending}.gz", what, gzip.compress(content)
        yield "txt.gz", f"{what}, not packed", content
    yield "txt.gz", "bomb", gzip.compress(bytes(2**27))
    yield "txt.gz", "cut", gzip.compress(b"text " * 1000)[:-9]
    yield "txt.gz", "trailing", gzip.compress(b"text " * 1000) + b"rest"
    yield "jsonl.gz", "bomb of lines", gzip.compress(b'{"text":"' + b"a" * 1000 + b'"}\n' * 1 + b"\n" * 2**27)
    for number_, value in enumerate(EVIL):
        line = json.dumps({"text": value}) if not isinstance(value, str) else json.dumps(value)
        yield "jsonl", f"evil {number_}", line.encode("utf-8")
    for line in ('{"text": "\\ud800' + "x" * 400 + '"}', '{"text"}', "[" * 100_000, '{"a":' * 100_000, '{"text": 1'):
        yield "jsonl", line[:10], line.encode()


def test_calibration_text_that_is_none_is_refused(tmp_path: Path) -> None:
    outcomes = Outcomes("calibration text", seconds=4)
    for ending, what, content in hostile_texts():
        path = tmp_path / f"data.{ending}"
        path.write_bytes(content)
        outcomes.check(f"{ending} {what}", lambda path=path: load(path), lambda _: False)
    outcomes.finish(60)


def test_mutated_lines_are_refused_or_text(tmp_path: Path) -> None:
    outcomes = Outcomes("calibration lines")
    tree = [{"text": "some words of a text " * 3, "meta": {"id": n}} for n in range(4)]
    path = tmp_path / "data.jsonl"
    for what, changed in mutated_trees(tree, generator("lines"), number(300), [v for v in EVIL if v != "a" * 10**6]):
        path.write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
        outcomes.check(what, lambda: load(path), in_range)
    for what, data in mutated_bytes(path.read_bytes(), generator("line bytes"), number(100)):
        path.write_bytes(data)
        outcomes.check(what, lambda: load(path), in_range)
    outcomes.finish(50)


@pytest.fixture
def generated(tmp_path: Path) -> tuple[Path, GenerationRequest]:
    """Tokens that `lowbit generate` keeps, written by its own code without a model."""
    request = GenerationRequest({"model": "ab" * 32}, GenerationSettings(n_samples=8, batch_size=8), 16, 0)
    path = tmp_path / "kept.npz"
    batches = path.with_suffix(".partial")
    batches.mkdir()
    (batches / f"{request.sha256[:16]}-000000.npz").write_bytes(saved(HONEST))
    write_generated(path, request, _no_model, None, lambda *_: None)
    return path, request


def _no_model() -> Any:
    raise AssertionError("no model is needed")


def test_changed_tokens_are_never_taken_for_those_that_were_generated(
    generated: tuple[Path, GenerationRequest],
) -> None:
    path, request = generated
    honest, described = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    outcomes = Outcomes("generated tokens")

    def same(found: Any) -> bool:
        return found is not None and found.tolist() == HONEST.tolist()

    outcomes.check("honest", lambda: read_generated(path, request), same)
    assert outcomes.failures == []
    for what, data in mutated_bytes(honest, generator("generated"), number(200)):
        path.write_bytes(data)
        outcomes.check(what, lambda: read_generated(path, request), same)
    path.write_bytes(honest)
    for what, tree in mutated_trees(described, generator("description"), number(200)):
        path.with_suffix(".json").write_text(json.dumps(tree), encoding="utf-8")
        outcomes.check(what, lambda: read_generated(path, request), same)
    outcomes.finish(100)
