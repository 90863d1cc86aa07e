"""Damaged and exchanged files of a journal: a clear error that names the file, never a wrong checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fuzz.cases import EVIL, Outcomes, generator, mutated_bytes, mutated_trees, number
from small_models import ModelFolder, make_recipe, quantize

from lowbit.errors import LowbitError
from lowbit.modeling.journal import Journal
from lowbit.modeling.sealing import digest_of, read_sealed, sealed
from lowbit.pipeline.make_checkpoint import journal_path
from lowbit.pipeline.quantize import HookEvents, quantize_to


class Interruption(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def started(parent: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a run that ended before its checkpoint was assembled: all three blocks are in the journal."""
    recipe = make_recipe(parent("llama"))

    def end(*_: object) -> None:
        raise Interruption

    with monkeypatch.context() as patched:
        patched.setattr("lowbit.modeling.checkpoint_writer._assemble", end)
        with pytest.raises(Interruption):
            quantize_to(recipe, tmp_path / "out", HookEvents(recipe))
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def continues(started: Path, parent: ModelFolder, packed: ModelFolder, tmp_path: Path) -> Callable[[], bool]:
    """Continues a copy of the run; says whether the checkpoint is the one of a run without damage."""
    expected, copies = contents(packed("llama")), iter(range(10**6))

    def proceed() -> bool:
        output = tmp_path / f"copy-{next(copies)}" / "out"
        output.parent.mkdir()
        shutil.copytree(journal_path(started), journal_path(output), symlinks=True)
        try:
            quantize(parent("llama"), output)
            return contents(output) == expected
        finally:
            shutil.rmtree(output.parent)

    return proceed


FILES = ("signature.json", "block-00000.json", "block-00001.safetensors", "block-00002.json")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named_or_make_no_difference(name: str, started: Path, continues: Callable[[], bool]) -> None:
    outcomes, file = Outcomes(f"a damaged {name}"), journal_path(started) / name
    honest = file.read_bytes()
    assert continues()
    for description, data in mutated_bytes(honest, generator(name), number(12)):
        file.write_bytes(data)
        outcomes.check(description, continues, bool)
    outcomes.finish(refusals=number(6))


def test_mutated_reports_are_refused_by_their_name(started: Path) -> None:
    journal = Journal(journal_path(started), "plain", 1)
    outcomes, file = Outcomes("mutated reports"), journal.report_file(1)
    honest = json.loads(file.read_text(encoding="utf-8"))
    assert journal.block(1).index == 1
    for description, tree in mutated_trees(honest, generator("reports"), number(250)):
        file.write_text(json.dumps(tree), encoding="utf-8")
        outcomes.check(description, lambda: journal.block(1), lambda _, tree=tree: tree == honest)
    outcomes.finish(refusals=number(200))


def test_reports_with_a_forged_digest_are_refused_or_read(started: Path) -> None:
    journal = Journal(journal_path(started), "plain", 1)
    outcomes, file = Outcomes("forged reports"), journal.report_file(1)
    honest = read_sealed(file)
    evil = [value for value in EVIL if value == value and value not in (float("inf"), float("-inf"))]
    for description, tree in mutated_trees(honest, generator("forged"), number(250), evil):
        file.write_text(json.dumps(sealed(tree)), encoding="utf-8")
        outcomes.check(description, lambda: journal.block(1))
    outcomes.finish(refusals=number(50))


def test_damaged_tensors_are_never_read(started: Path) -> None:
    journal = Journal(journal_path(started), "plain", 1)
    outcomes, file = Outcomes("damaged tensors"), journal.tensors_file(0)
    honest, expected = file.read_bytes(), digest_of(journal.block(0).untouched)
    for description, data in mutated_bytes(honest, generator("tensors"), number(250)):
        file.write_bytes(data)
        outcomes.check(description, lambda: journal.block(0), lambda block: digest_of(block.untouched) == expected)
    outcomes.finish(refusals=number(200))


def exchanges(journal: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs of names of files to exchange."""
    yield "block-00000.safetensors", "block-00001.safetensors"
    yield "block-00000.json", "block-00001.json"
    yield "block-00002.json", "signature.json"


def test_exchanged_files_are_named(started: Path, continues: Callable[[], bool]) -> None:
    journal = journal_path(started)
    for first, second in exchanges(journal):
        _exchange(journal, first, second)
        with pytest.raises(LowbitError, match=r"is damaged|another recipe"):
            continues()
        _exchange(journal, first, second)
    for ending in ("safetensors", "json"):
        _exchange(journal, f"block-00000.{ending}", f"block-00001.{ending}")
    with pytest.raises(LowbitError, match=r"block-00000\.json is damaged: it is the report of block 1"):
        continues()


def _exchange(folder: Path, first: str, second: str) -> None:
    (folder / first).rename(folder / "other")
    (folder / second).rename(folder / first)
    (folder / "other").rename(folder / second)


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_none_are_named(name: str, started: Path, continues: Callable[[], bool]) -> None:
    (journal_path(started) / name).unlink()
    (journal_path(started) / name).mkdir()
    with pytest.raises(LowbitError, match=name.partition(".")[0]):
        continues()


def test_a_digest_tells_names_types_shapes_and_bytes_apart() -> None:
    numbers = torch.arange(6, dtype=torch.int32)
    told = [
        digest_of(tensors)
        for tensors in (
            {"a": numbers},
            {"b": numbers},
            {"a": numbers.reshape(2, 3)},
            {"a": numbers.view(torch.float32)},
            {"a": numbers + 1},
            {"a": numbers, "b": torch.empty(0)},
            {"a": torch.tensor(1.0, dtype=torch.bfloat16)},
        )
    ]
    assert len(set(told)) == len(told)
    assert digest_of({"b": numbers, "a": numbers}) == digest_of({"a": numbers.clone(), "b": numbers})
