from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from lowbit import FidelityConfig


class Options(FidelityConfig):
    """Options of a made-up method."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"mean_shift": False, "candidates": 9},
        "code": {"mean_shift": True, "candidates": 81},
    }

    mean_shift: bool | None = Field(None, description="a switch")
    candidates: int | None = Field(None, description="another")
    damping: float = Field(0.01, description="no switch")


def test_a_preset_sets_every_switch_that_is_left_open() -> None:
    paper, code = Options().resolved(), Options(fidelity="code", damping=0.1).resolved()
    assert (paper.mean_shift, paper.candidates, paper.damping) == (False, 9, 0.01)
    assert (code.mean_shift, code.candidates, code.damping) == (True, 81, 0.1)


def test_a_switch_that_is_given_keeps_its_value_under_either_preset() -> None:
    for fidelity in ("paper", "code"):
        assert Options(fidelity=fidelity, mean_shift=False).resolved().mean_shift is False


def test_what_is_recorded_still_follows_another_preset() -> None:
    recorded = Options(candidates=5).model_dump(mode="json")
    changed = Options.model_validate({**recorded, "fidelity": "code"}).resolved()
    assert (changed.mean_shift, changed.candidates) == (True, 5)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValidationError, match="fidelity"):
        Options.model_validate({"fidelity": "exact"})
