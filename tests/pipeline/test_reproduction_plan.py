"""From cells to recipes: the published protocol, equal recipes once, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowbit import LowbitError, PublishedCell, PublishedProtocol, PublishedResults
from lowbit.pipeline.published import cells_for, published_results, read_published
from lowbit.pipeline.reproduction_plan import Plan, make_plan
from lowbit.registry import registry

FILES = sorted((Path(__file__).resolve().parents[2] / "plugins").glob("*/published/*.json"))
LLAMA2 = "meta-llama/Llama-2-7b-hf"
PROTOCOL = PublishedProtocol(context_length=1024, calibration="c4", n_samples=64, seq_len=512, seed=3, num_fewshot=0)


def cell(**changes: Any) -> PublishedCell:
    given = {
        "label": "RTN",
        "model": "*",
        "method": "rtn",
        "tasks": ("piqa",),
        "metric": "acc",
        "source": "T",
        "value": 9.0,
    }
    return PublishedCell(**{**given, **changes})


def plan(*cells: PublishedCell, flags: dict[str, Any] | None = None, protocol: PublishedProtocol = PROTOCOL) -> Plan:
    results = PublishedResults(version=1, paper="mine", title="Mine", protocol=protocol, cells=cells)
    return make_plan(results, cells, "org/tiny", flags or {})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_cell_of_a_registered_method_makes_a_recipe(file: Path) -> None:
    results = read_published(file)
    methods = registry().table("method")
    for model in dict.fromkeys(cell.model for cell in results.cells):
        made = make_plan(results, cells_for(results, model), model, {})
        planned = [cell for run in made.runs for cell in run.cells]
        assert len(planned) == sum(cell.method in methods for cell in made.cells)
        assert len(planned) + len(made.skipped) == len(made.cells)
        for run in made.runs:
            assert run.recipe.model.path == model
            assert run.recipe.quantizer is not None
            for cell in run.cells:
                stated = {key: run.recipe.quantizer.options[key] for key in cell.options}
                assert stated == cell.options


def test_the_published_protocol_becomes_the_recipe() -> None:
    [run] = plan(
        cell(options={"bits": 3}), cell(tasks=("wikitext2_ppl",), metric="token_perplexity", options={"bits": 3})
    ).runs
    recipe = run.recipe
    assert (recipe.method, recipe.model.path, recipe.seed) == ("rtn", "org/tiny", 3)
    assert recipe.quantizer is not None and recipe.quantizer.options["bits"] == 3
    assert (recipe.calibration.source, recipe.calibration.n_samples, recipe.calibration.seq_len) == ("c4", 64, 512)
    assert recipe.eval.tasks == ("piqa", "wikitext2_ppl@1024")
    assert recipe.eval.num_fewshot == 0


def test_cells_with_the_same_recipe_are_one_run_and_a_default_spelt_out_is_the_same() -> None:
    made = plan(
        cell(options={"bits": 2}),
        cell(tasks=("boolq",)),
        cell(source="another paper"),
        cell(options={"bits": 3}),
        cell(source="in domain", protocol=PublishedProtocol(calibration="wikitext2")),
    )
    assert [len(run.cells) for run in made.runs] == [3, 1, 1]
    assert made.runs[0].recipe.eval.tasks == ("piqa", "boolq")
    assert made.runs[2].recipe.calibration.source == "wikitext2"


def test_context_lengths_are_never_mixed() -> None:
    perplexity: dict[str, Any] = {"tasks": ("wikitext2_ppl",), "metric": "token_perplexity"}
    longer = cell(**perplexity, source="longer", protocol=PublishedProtocol(context_length=4096))
    [run] = plan(cell(**perplexity), longer).runs
    assert run.recipe.eval.tasks == ("wikitext2_ppl@1024", "wikitext2_ppl@4096")
    with pytest.raises(LowbitError, match="with and without a context length"):
        plan(cell(**perplexity), longer, protocol=PublishedProtocol())


def test_what_lowbit_cannot_run_is_left_out_with_its_reason() -> None:
    made = plan(
        cell(), cell(method=None, note="it is trained"), cell(method="rnt", source="b"), cell(method="none", source="c")
    )
    assert len(made.runs) == 1
    reasons = [made.skipped[cell.identity] for cell in made.cells if cell.identity in made.skipped]
    assert reasons[0] == "it is trained"
    assert "no method named 'rnt'; did you mean rtn" in reasons[1]
    assert "quantizes nothing" in reasons[2]


def test_an_option_that_the_quantizer_lacks_is_refused_with_the_cell() -> None:
    with pytest.raises(LowbitError, match=r"cell 'RTN' \(T\): .*did you mean bits"):
        plan(cell(options={"bit": 3}))


def test_flags_win_over_the_protocol_and_are_told() -> None:
    flags = {"seed": 1, "calibration": {"source": "text.jsonl", "n_samples": 64}, "eval": {"limit": 8.0}}
    made = plan(cell(), flags=flags)
    recipe = made.runs[0].recipe
    assert (recipe.seed, recipe.calibration.source, recipe.calibration.seq_len) == (1, "text.jsonl", 512)
    assert recipe.eval.limit == 8
    assert made.changes == (
        "calibration text.jsonl (published: c4)",
        "seed 1 (published: 3)",
        "limit 8 (published: everything)",
    )


def test_a_token_file_is_used_whole_unless_less_is_asked_for() -> None:
    [whole] = plan(cell(), flags={"calibration": {"source": "tokens.npz"}}).runs
    assert (whole.recipe.calibration.n_samples, whole.recipe.calibration.seq_len) == (None, None)
    [less] = plan(cell(), flags={"calibration": {"source": "tokens.npz", "n_samples": 8}}).runs
    assert less.recipe.calibration.n_samples == 8


def test_every_cell_of_one_quantization_is_answered_by_one_run() -> None:
    results = published_results(registry(), "dbllm", None)
    made = make_plan(results, cells_for(results, LLAMA2), LLAMA2, {})
    [run] = made.runs
    assert run.recipe.eval.tasks[:2] == ("wikitext2_ppl@2048", "c4_ppl@2048")
    assert [cell.value for cell in run.cells] == [7.23, 9.62, 56.93]
