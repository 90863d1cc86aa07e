"""What `lowbit eval` adds to a results directory stands beside what `lowbit bench` added."""

from __future__ import annotations

from typing import Any

import pytest

from lowbit.embedded import task_configs
from lowbit.pipeline.api import resolve_grid
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.evaluate import evaluate_model
from lowbit.recipe import Recipe
from lowbit.results.comparison import compare_runs
from lowbit.results.leaderboard import build_leaderboard
from lowbit.results.protocol import family
from lowbit.results.store import StoredResult, read_results

EVALUATION: dict[str, Any] = {"tasks": "smallworld_choice", "limit": 10, "bootstrap_iters": 0, "log_samples": True}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredResult, ...]:
    """A parent and a quantized model, each benched and then evaluated again."""
    folder = tmp_path_factory.mktemp("results")
    rows = list(
        bench(resolve_grid(None, "rtn", {"eval": EVALUATION}), BenchOptions(folder, extra_tasks=task_configs()))
    )
    assert [row.error for row in rows] == [None, None]
    (checkpoint,) = (path for path in (folder / "checkpoints").iterdir() if path.is_dir())
    for path in (None, str(checkpoint)):
        recipe = Recipe.model_validate({"method": "none", "model": {"path": path}, "eval": EVALUATION})
        evaluate_model(recipe, "cpu", str(folder), task_configs())
    found = read_results(folder)
    assert found.unreadable == ()
    return found.results


def test_an_evaluated_checkpoint_is_of_the_recipe_that_made_it(results: tuple[StoredResult, ...]) -> None:
    benched = {result.role: result for result in results if result.lowbit["role"] != "evaluation"}
    evaluated = {result.role: result for result in results if result.lowbit["role"] == "evaluation"}
    assert benched.keys() == evaluated.keys() == {"parent", "quantized"}
    for role, result in evaluated.items():
        assert family(result) == family(benched[role])
        assert (result.method, result.seed) == (benched[role].method, benched[role].seed)
        assert result.lowbit["data_sha256"] == benched[role].lowbit["data_sha256"]
        assert [m.value for m in result.metrics] == pytest.approx([m.value for m in benched[role].metrics])


def test_both_stand_in_one_row_of_the_leaderboard(results: tuple[StoredResult, ...]) -> None:
    board = build_leaderboard(results, ["method", "runs", "smallworld_choice"])
    ((model, rows),) = ((group.model, group.rows) for group in board.groups)
    assert model == "embedded"
    assert [[cell.value for cell in row.cells[:2]] for row in rows] == [["parent", "2"], ["rtn", "2"]]


def test_real_samples_can_be_compared(results: tuple[StoredResult, ...]) -> None:
    parent = next(result for result in results if result.role == "parent")
    rtn = next(result for result in results if result.role == "quantized")
    compared = compare_runs([parent, rtn], resamples=200)
    assert {row.metric for row in compared.rows} == {"acc", "acc_norm"}
    assert all(row.documents == 10 and row.mcnemar is not None for row in compared.rows)
    assert [note for note in compared.notes if "10 documents" not in note] == []
