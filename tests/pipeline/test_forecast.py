from __future__ import annotations

from pathlib import Path

import pytest

from lowbit.pipeline.forecast import forecast
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.recipe import resolve_recipe
from lowbit.registry import registry


@pytest.mark.parametrize("method", ["dbllm-ptq", "rtn"])
def test_the_forecast_agrees_with_what_is_written(tmp_path: Path, method: str) -> None:
    recipe = resolve_recipe(registry(), method)
    expected = forecast(recipe)
    found = quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    assert expected.coverage.to_dict() == found.coverage
    assert expected.quantized_bits == pytest.approx(found.bits.quantized_bits, rel=0.02)
    assert expected.checkpoint_bytes == pytest.approx(found.bits.file_bytes, rel=0.05)


def test_rules_change_the_forecast(tmp_path: Path) -> None:
    skipped = resolve_recipe(registry(), "rtn", {"modules_to_not_convert": ["*.down_proj"]})
    found = forecast(skipped)
    assert found.coverage.share < 1
    assert all(name.endswith("down_proj") for name in found.coverage.skipped)
    assert found.checkpoint_bytes > forecast(resolve_recipe(registry(), "rtn")).checkpoint_bytes
