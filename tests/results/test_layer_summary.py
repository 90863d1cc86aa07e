from __future__ import annotations

from typing import Any

import pytest

from lowbit.results.layer_summary import summarize_layers


def layer(weights: int, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    return {"weights": weights, "untrained": before, "diagnostics": after}


def test_layers_count_by_their_number_of_weights() -> None:
    layers = [layer(100, {"density": 0.2}, {"density": 0.4}), layer(300, {"density": 0.6}, {"density": 0.8})]
    summary = summarize_layers(layers)
    assert summary["before"] == pytest.approx({"density": 0.5})
    assert summary["after"] == pytest.approx({"density": 0.7})


def test_a_number_of_some_layers_is_their_mean() -> None:
    layers = [layer(100, {}, {"density": 0.4, "correlation": -0.5}), layer(300, {}, {"density": 0.8})]
    summary = summarize_layers(layers)
    assert summary["before"] == {}
    assert summary["after"] == pytest.approx({"density": 0.7, "correlation": -0.5})


def test_no_layers_have_no_numbers() -> None:
    assert summarize_layers([]) == {"before": {}, "after": {}}
