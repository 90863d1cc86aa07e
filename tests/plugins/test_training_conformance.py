"""Quantizers of the box offer training, or say that they do not; test_conformance.py checks the training itself."""

from __future__ import annotations

import pytest
from plugins.matrices import gaussian
from plugins.trained import in_training

from lowbit.registry import registry
from lowbit.testing import QuantizerConformance

QUANTIZERS = sorted(registry().table("weight quantizer"))
TRAINABLE = [name for name in QUANTIZERS if registry().quantizer(name).is_trainable()]
UNTRAINABLE = [name for name in QUANTIZERS if name not in TRAINABLE]


def test_there_is_something_to_train() -> None:
    assert TRAINABLE
    assert UNTRAINABLE


def test_the_kit_checks_training() -> None:
    assert len([check for check in QuantizerConformance.checks() if "training" in check]) >= 12


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_others_say_that_they_offer_no_training(name: str) -> None:
    weight = gaussian(2, 64)
    with pytest.raises(NotImplementedError, match=f"{name} offers no training"):
        in_training(name, weight)
