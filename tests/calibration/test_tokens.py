from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lowbit.calibration import CalibrationTokens, TokenRequest, load_calibration, token_file_shape
from lowbit.contracts import CalibrationSource, DataAccess
from lowbit.errors import LowbitError


class Alphabet(CalibrationSource):
    """Ten documents of letters."""

    name: ClassVar[str] = "alphabet"
    domain: ClassVar[str] = "letters"

    def documents(self, access: DataAccess) -> Iterator[str]:
        """Yield them."""
        yield from ("abcdefghij" for _ in range(10))


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def load(source: str, **changes: Any) -> CalibrationTokens:
    request = TokenRequest(**{"n_samples": 4, "seq_len": 8, "vocabulary": 256, "seed": 0, **changes})
    return load_calibration(source, lambda name: Alphabet, encode, request, DataAccess())


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return path


def test_windows_are_pieces_of_the_text_and_the_seed_decides_which(text_file: Path) -> None:
    first, again, other = load(str(text_file)), load(str(text_file)), load(str(text_file), seed=1)
    assert first.tokens.shape == (4, 8)
    text = text_file.read_text()
    for row in first.tokens.tolist():
        assert "".join(map(chr, row)) in text
    assert torch.equal(first.tokens, again.tokens)
    assert first.sha256 == again.sha256 != other.sha256


def test_a_source_joins_its_documents_and_names_its_domain() -> None:
    found = load("alphabet", n_samples=50, seq_len=12)
    assert found.domain == "letters"
    assert any("j\n\na" in "".join(map(chr, row)) for row in found.tokens.tolist())


@pytest.mark.parametrize("compressed", [False, True])
def test_json_lines_are_read_by_their_text_field(tmp_path: Path, compressed: bool) -> None:
    lines = "".join(json.dumps({"text": "x" * 30, "id": n}) + "\n" for n in range(3))
    path = tmp_path / ("text.jsonl.gz" if compressed else "text.jsonl")
    path.write_bytes(gzip.compress(lines.encode()) if compressed else lines.encode())
    assert set(load(str(path), n_samples=20).tokens.flatten().tolist()) <= {ord("x"), ord("\n")}


def test_a_token_file_is_used_as_it_is(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int32).reshape(5, 12)
    np.savez(tmp_path / "tokens.npz", tokens=array)
    assert load(str(tmp_path / "tokens.npz")).tokens.tolist() == array[:4, :8].tolist()


def test_the_only_array_of_a_token_file_may_have_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens.npz", input_ids=np.zeros((4, 8), dtype=np.int32))
    assert load(str(tmp_path / "tokens.npz")).tokens.shape == (4, 8)
    assert token_file_shape(tmp_path / "tokens.npz") == (4, 8)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"tokens": np.zeros((4, 8))}, "must be integers"),
        ({"tokens": np.zeros(8, dtype=np.int64)}, "must be integers"),
        ({"one": np.zeros((4, 8), dtype=np.int64), "two": np.zeros((4, 8))}, "no array named 'tokens', but one, two"),
        ({"tokens": np.zeros((0, 8), dtype=np.int64)}, "must be integers"),
        ({"tokens": np.zeros((3, 8), dtype=np.int64)}, "--n_samples"),
        ({"tokens": np.zeros((4, 7), dtype=np.int64)}, "--seq_len"),
        ({"tokens": np.full((4, 8), 256)}, "another tokenizer"),
        ({"tokens": np.full((4, 8), -1)}, "another tokenizer"),
        ({"tokens": np.array([[object()] * 8] * 4)}, "cannot be read"),
    ],
)
def test_a_token_file_that_does_not_hold_up_is_refused(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "tokens.npz", **arrays)
    with pytest.raises(LowbitError, match=reason):
        load(str(tmp_path / "tokens.npz"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("short.txt", b"too short", "too few"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "line 2"),
        ("other.jsonl", b'{"content": "a"}\n', 'string under "text"'),
        ("latin.txt", b"\xff\xfe\xfa" * 100, "cannot be read"),
        ("broken.jsonl.gz", b"no gzip at all", "cannot be read"),
        ("broken.npz", b"no zip at all", "cannot be read"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LowbitError, match=reason):
        load(str(tmp_path / name))


def test_text_of_another_vocabulary_is_refused(text_file: Path) -> None:
    with pytest.raises(LowbitError, match="another tokenizer"):
        load(str(text_file), vocabulary=50)
