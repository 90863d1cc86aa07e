"""The examples of the documentation run as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from distillation.batches import random_batch

from lowbit.registry import Registry

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


def test_the_example_loss_is_lowest_where_both_models_are_sure_of_the_same_token() -> None:
    registry = Registry()
    registry.load(str(EXAMPLES / "agreement_loss.py"))
    loss = registry.distillation_loss("agreement")()
    batch = random_batch()
    term = loss(batch)
    expected = -(batch.teacher_logits.softmax(-1) * batch.student_logits.softmax(-1)).sum(-1).log()
    assert term.value.tolist() == pytest.approx(expected.tolist())
    assert term.weight is None
