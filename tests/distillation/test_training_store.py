"""Checkpoints of a training, whole at any moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit.distillation.training_store import RECORD_FILE, TrainingStore
from lowbit.errors import LowbitError


def test_a_checkpoint_replaces_the_one_before_and_keeps_its_best_state(tmp_path: Path) -> None:
    store = TrainingStore(tmp_path / "training")
    assert store.record() is None
    assert store.seconds() == 0
    for step in (1, 2, 3):
        store.save_best(min(step, 2), {"a": torch.full((2,), float(step))})
        store.save(step, {"a": torch.full((2,), 10.0 * step)}, {"best_step": min(step, 2), "seconds": 1.5 * step})
    assert sorted(file.name for file in store.folder.iterdir()) == [
        "best-0000002.safetensors",
        "step-0000003.safetensors",
        RECORD_FILE,
    ]
    assert store.tensors(3)["a"].tolist() == [30.0, 30.0]
    assert store.best(2)["a"].tolist() == [3.0, 3.0]
    assert store.seconds() == 4.5


def test_what_a_kill_left_behind_is_removed_by_the_next_checkpoint(tmp_path: Path) -> None:
    store = TrainingStore(tmp_path)
    store.save_best(0, {})
    store.save_best(4, {})
    (tmp_path / "step-0000005.safetensors.123.tmp").write_bytes(b"half")
    store.save(2, {}, {"best_step": 0})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best-0000000.safetensors", "step-0000002.safetensors", RECORD_FILE,
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"step": "x"}'])
def test_a_damaged_record_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD_FILE).write_text(content)
    with pytest.raises(LowbitError, match="delete"):
        TrainingStore(tmp_path).record()
