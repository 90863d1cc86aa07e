"""A run that is interrupted at any moment ends in the same bytes; another recipe is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_models import VOCABULARY, ModelFolder, load_model, logits, make_config, make_parent, make_recipe, quantize

from lowbit.contracts import QuantizedBlock, QuantizedLayer
from lowbit.errors import LowbitError
from lowbit.modeling.journal import Journal, check_signature
from lowbit.pipeline.make_checkpoint import journal_path
from lowbit.pipeline.quantize import quantize_to

TESTS = Path(__file__).resolve().parents[1]
PLUGIN = TESTS.parent / "benchmarks" / "hessian_rounding.py"


class Interruption(Exception):
    """Stands for the end of the process."""


class StopAfter:
    """Events that end the run after a block."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.finished_before = -1

    def run_started(self, blocks: int, finished: int) -> None:
        self.finished_before = finished

    def layer_quantized(self, layer: QuantizedLayer) -> None:
        """Do nothing."""

    def block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        if block.index == self.block:
            raise Interruption

    def run_ended(self) -> None:
        pass


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def interrupted(parent: ModelFolder, tmp_path: Path) -> Path:
    """The output of a run that ended after its second block."""
    recipe = make_recipe(parent("llama"))
    with pytest.raises(Interruption):
        quantize_to(recipe, tmp_path / "out", StopAfter(1))
    return tmp_path / "out"


def test_runs_killed_at_random_moments_end_in_identical_bytes(tmp_path: Path) -> None:
    config = make_config("llama")
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 6, 64, 160
    parent = make_parent(tmp_path / "parent", config)
    tokens = np.random.default_rng(3).integers(3, VOCABULARY, (6, 32), dtype=np.int64)
    np.savez(tmp_path / "tokens.npz", tokens=tokens)
    environment = {**os.environ, "LOWBIT_PLUGINS": str(PLUGIN), "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(Path(__file__).with_name("killed_runs.py"))]
    arguments = [str(tmp_path / "parent"), str(tmp_path), str(tmp_path / "tokens.npz"), "10"]
    assert parent.is_dir()
    done = subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert {"config.json", "model.safetensors", "tokenizer.json", "lowbit_recipe.yaml"} <= set(report["files"])
    trials = report["trials"]
    assert [trial["status"] for trial in trials] == [0] * 10, done.stderr
    assert [trial["identical"] for trial in trials] == [True] * 10
    assert all(trial["after"] in (["out"], ["out", "out.cost.json"]) for trial in trials)
    assert len({tuple(trial["left"]) for trial in trials}) >= 3


def test_an_interrupted_run_continues_after_its_last_block(
    interrupted: Path, parent: ModelFolder, packed: ModelFolder
) -> None:
    events = StopAfter(99)
    quantize_to(make_recipe(parent("llama")), interrupted, events)
    assert events.finished_before == 2
    assert contents(interrupted) == contents(packed("llama"))
    assert not journal_path(interrupted).exists()


def test_leftovers_of_a_killed_run_are_cleaned(interrupted: Path, parent: ModelFolder, packed: ModelFolder) -> None:
    journal = journal_path(interrupted)
    (journal / "block-00002.safetensors.tmp").write_bytes(b"half")
    (journal / "block-00002.json").write_text("{")
    (journal / "activations-00000.00000-00001.npy").write_bytes(b"stale")
    (journal / "activations-00002.00000-00001.npy.tmp").write_bytes(b"half")
    (journal / "checkpoint").mkdir()
    (journal / "checkpoint" / "model.safetensors").write_bytes(b"half")
    Journal(journal, "plain", 1).open(json.loads((journal / "signature.json").read_text()))
    assert not list(journal.glob("*.tmp"))
    assert not (journal / "activations-00000.00000-00001.npy").exists()
    quantize(parent("llama"), interrupted)
    assert contents(interrupted) == contents(packed("llama"))
    assert sorted(file.name for file in interrupted.parent.iterdir()) == ["out", "out.cost.json"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"seed": 5}, "recipe.seed"), ({"quantizer": {"name": "fdb", "group_size": 32}}, "recipe.quantizer.group_size")],
)
def test_a_changed_recipe_is_refused_with_the_differing_keys(
    changes: dict[str, Any], key: str, interrupted: Path, parent: ModelFolder
) -> None:
    before = contents(journal_path(interrupted))
    with pytest.raises(LowbitError) as caught:
        quantize(parent("llama"), interrupted, **changes)
    assert key in str(caught.value)
    assert contents(journal_path(interrupted)) == before


def test_a_changed_parent_is_refused(interrupted: Path, parent: ModelFolder) -> None:
    with pytest.raises(LowbitError, match=r"model\.sha256"):
        quantize(parent("llama-tied"), interrupted)


def test_a_finished_checkpoint_is_not_made_again(parent: ModelFolder, tmp_path: Path) -> None:
    quantize(parent("llama"), tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    again = quantize(parent("llama"), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written
    assert again.bits.quantized_weights == 3 * (32 * 32 * 2 + 16 * 32 * 2 + 48 * 32 * 3)
    with pytest.raises(LowbitError, match=r"recipe\.seed"):
        quantize(parent("llama"), tmp_path / "out", seed=1)


def test_a_full_disk_is_one_clear_error_and_the_run_continues_later(
    parent: ModelFolder, packed: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = safetensors.torch.save_file
    calls = []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(LowbitError, match="No space left"):
        quantize(parent("llama"), tmp_path / "out")
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "out").exists()
    quantize(parent("llama"), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(packed("llama"))


def test_a_small_limit_makes_an_index_and_both_forms_load(
    parent: ModelFolder, packed: ModelFolder, tmp_path: Path
) -> None:
    quantize(parent("llama"), tmp_path / "out", max_shard_size=10_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    assert len(files) > 2
    assert set(index["weight_map"].values()) == files
    one, many = load_model(packed("llama")), load_model(tmp_path / "out")
    assert torch.equal(logits(one), logits(many))


def test_files_have_the_mode_of_ordinary_files(packed: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    modes = {file.stat().st_mode for file in packed("llama").iterdir()}
    assert modes == {(tmp_path / "ordinary").stat().st_mode}


def test_an_unreadable_journal_says_what_to_do(interrupted: Path, parent: ModelFolder) -> None:
    (journal_path(interrupted) / "signature.json").write_text("{")
    with pytest.raises(LowbitError, match="delete"):
        quantize(parent("llama"), interrupted)


def test_signatures_are_compared_key_by_key() -> None:
    check_signature({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, Path("x"))
    with pytest.raises(LowbitError, match=r"a\.b\.1: 2 there, 3 now"):
        check_signature({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, Path("x"))


def test_activations_come_back_as_they_were_written(tmp_path: Path) -> None:
    store = Journal(tmp_path, "plain", 3)
    hidden = torch.randn(3, 5, 4)
    with store.write_activations(0) as writer:
        for sample in hidden.split(1):
            writer.append(sample)
    assert torch.equal(torch.cat(list(store.activations(0))), hidden)


def test_incomplete_activations_never_become_visible(tmp_path: Path) -> None:
    store = Journal(tmp_path, "plain", 3)
    with pytest.raises(LowbitError, match="1 of 3"), store.write_activations(0) as writer:
        writer.append(torch.randn(1, 5, 4))
    assert not store.has_activations(0)
    assert not list(tmp_path.iterdir())
