"""The losses of the box hold to the contract that anybody's loss is checked by."""

from __future__ import annotations

import warnings

import pytest

from lowbit.registry import registry
from lowbit.testing import ConformanceNote, LossConformance

LOSSES = sorted(registry().table("distillation loss"))


def test_the_losses_of_the_box_are_registered() -> None:
    assert {"ce", "dad", "kl", "mse", "next-token"} <= set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("check", LossConformance.checks())
def test_losses_hold_to_their_contract(name: str, check: str) -> None:
    suite = type("Made", (LossConformance,), {"loss": registry().distillation_loss(name)})
    with warnings.catch_warnings():
        # A loss of the box that compares with the teacher is lowest where both agree.
        warnings.simplefilter("error", ConformanceNote)
        getattr(suite(), check)()
