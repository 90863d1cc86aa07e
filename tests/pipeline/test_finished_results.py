"""Cells of grids that meet in one results directory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lowbit.pipeline.bench_options import BenchOptions
from lowbit.pipeline.finished_results import cell_turn
from lowbit.recipe import Recipe


def entered(options: BenchOptions, role: str, recipe: Recipe, same: str) -> threading.Event:
    """Take a turn in a thread, and return what is set once it has come."""
    came = threading.Event()

    def take() -> None:
        with cell_turn(options, role, recipe, same):
            came.set()

    threading.Thread(target=take, daemon=True).start()
    return came


@pytest.mark.parametrize("role", ["parent", "quantized"])
def test_cells_with_the_same_in_common_take_turns_whatever_their_recipe(tmp_path: Path, role: str) -> None:
    options = BenchOptions(tmp_path, skip_finished=True)
    first, second = Recipe(method="rtn"), Recipe(method="gptq", seed=1)
    with cell_turn(options, role, first, "ab" * 32):
        waiting = entered(options, role, second, "ab" * 32)
        assert entered(options, role, second, "cd" * 32).wait(5)
        assert not waiting.wait(0.6)
    assert waiting.wait(5)
