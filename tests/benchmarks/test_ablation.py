"""The ablation: variants that change what they say, held-out text, cells made once, the table, and the plot."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from small_models import ModelFolder

from lowbit.embedded import calibration_path
from lowbit.errors import LowbitError
from lowbit.recipe import Recipe, parse_override

BENCHMARK = "ablation"

RECONSTRUCTION = {"steps": 30, "batch_size": 8}
DISTILLATION = {"steps": 10, "batch_size": 16, "loss": [{"name": "dad", "mixing": 2.0}]}
BASES = {
    name: {"reconstruction": blocks, "distillation": whole, "training_data": {"source": source}}
    for name, blocks, whole, source in (
        ("both stages", RECONSTRUCTION, DISTILLATION, "auto"),
        ("distillation", None, DISTILLATION, "calibration"),
        ("reconstruction", RECONSTRUCTION, None, "generated"),
    )
}


def settings_of(module: ModuleType, folder: Path, config: dict[str, Any], **changes: Any) -> Any:
    return module.Settings(**{"folder": folder, "model": None, "split": "validation", "config": config, **changes})


def variants_and_recipes(module: ModuleType, settings: Any) -> tuple[Recipe, list[tuple[Any, Recipe]]]:
    base = module.recipe_of(module.AblationJob("base", (), 0), settings)
    variants = module.variants_of(base)
    jobs = [module.AblationJob(variant.name, variant.overrides, 0) for variant in variants]
    return base, list(zip(variants, (module.recipe_of(job, settings) for job in jobs), strict=True))


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, inner in value.items() for key, leaf in leaves(inner, (*path, name)).items()}


def holds(found: Any, wanted: Any) -> bool:
    """Whether a resolved value is what was asked for, options that were filled in aside."""
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(holds, found, wanted))
    if isinstance(wanted, dict):
        return all(holds(found[key], value) for key, value in wanted.items())
    return bool(found == wanted)


@pytest.mark.parametrize("name", BASES)
def test_every_variant_is_a_valid_recipe_that_differs_in_what_it_says_and_nothing_else(
    benchmark_module: ModuleType, tmp_path: Path, name: str
) -> None:
    settings = settings_of(benchmark_module, tmp_path, BASES[name])
    base, rows = variants_and_recipes(benchmark_module, settings)
    before = leaves(base.to_dict())
    for variant, recipe in rows:
        overrides = [parse_override(text) for text in variant.overrides]
        for override in overrides:
            value: Any = recipe.to_dict()
            for key in override.path:
                value = value[key]
            is_last = [other.path for other in overrides].count(override.path) == 1
            assert is_last and holds(value, override.value), (variant.name, override)
        after = leaves(recipe.to_dict())
        changed = {path for path in {*before, *after} if before.get(path, "absent") != after.get(path, "absent")}
        asked = [override.path for override in overrides]
        if ("quantizer", "name") in asked:
            asked.append(("quantizer",))
        elif ("distillation", "steps") in asked or ("reconstruction", "steps") in asked:
            asked += [(stage,) for stage in ("distillation", "reconstruction") if getattr(base, stage) is None]
        stray = [path for path in changed if not any(path[: len(prefix)] == prefix for prefix in asked)]
        assert not stray, (variant.name, stray)
    assert len({(variant.group, variant.name) for variant, _ in rows}) == len(rows)


def test_all_that_is_to_be_compared_is_there(benchmark_module: ModuleType, tmp_path: Path) -> None:
    settings = settings_of(benchmark_module, tmp_path, BASES["both stages"])
    _, rows = variants_and_recipes(benchmark_module, settings)
    trained = [recipe for _, recipe in rows if recipe.trains]
    options = [recipe.quantizer.options for recipe in trained if recipe.quantizer.name == "fdb"]
    assert {o["scale_init"] for o in options} == {"minmax", "mse"}
    assert {o["orientation"] for o in options} == {"positive", "negative", "per-group"}
    assert {o["gradient"] for o in options} == {"levels", "codes", "identity", "identity-unscaled"}
    assert {o["gradient"] for o in options if not o["train_latent_weight"]} == {"levels", "codes", "identity-unscaled"}
    assert {recipe.training_data.source for recipe in trained} >= {"calibration", "generated", "both"}
    assert len({recipe.training_data.generated.n_samples for recipe in trained}) == 4
    losses = [loss for recipe in trained if recipe.distillation for loss in recipe.distillation.loss]
    assert {loss.name for loss in losses} == {"ce", "kl", "dad", "mse"}
    assert {loss.options["direction"] for loss in losses if loss.name == "kl"} == {"forward", "reverse"}
    dad = [loss.options for loss in losses if loss.name == "dad"]
    assert {o["mixing"] for o in dad} == {0, 0.5, 1, 2} and {o["form"] for o in dad} == {"added", "replaced"}
    assert {(o["teacher_gamma"], o["student_gamma"]) for o in dad} == {(g, g) for g in (0.25, 0.5, 1)}
    assert {o["mixing"] for o in dad if o["teacher_gamma"] == 1} == {2}, "the base's mixing holds in the sweep of gamma"
    peers = {(r.quantizer.name, r.quantizer.options["group_size"], r.trains) for _, r in rows if r.quantizer}
    assert peers == {
        *(("fdb", 64, trains) for trains in (True, False)),
        *(("lsq", 64, trains) for trains in (True, False)),
        *(("gptq", group, False) for group in (32, 64)),
        ("rtn", 64, False),
    }
    assert {r.quantizer.options["bits"] for _, r in rows if r.quantizer.name != "fdb"} == {2}


@pytest.mark.parametrize("name", BASES)
def test_the_budget_is_the_bases_unless_the_variant_says_so(
    benchmark_module: ModuleType, tmp_path: Path, name: str
) -> None:
    from ablation_variants import sequences

    base, rows = variants_and_recipes(benchmark_module, settings_of(benchmark_module, tmp_path, BASES[name]))
    budget = sequences(base.reconstruction) + sequences(base.distillation)
    stages = set()
    for variant, recipe in rows:
        spent = sequences(recipe.reconstruction) + sequences(recipe.distillation)
        relation = {"": spent == budget, "fewer tokens": 0 < spent < budget, "more tokens": spent > budget}
        assert relation.get(variant.budget, spent == 0), variant.name
        if variant.budget != "no training":
            stages.add((recipe.reconstruction is not None, recipe.distillation is not None, variant.budget))
    assert stages >= {(True, False, ""), (False, True, ""), (True, True, "")}


def test_a_base_that_trains_nothing_or_is_another_quantizer_is_refused(
    benchmark_module: ModuleType, tmp_path: Path
) -> None:
    for config, message in (
        ({"method": "dbllm-ptq"}, "trains nothing"),
        ({"method": "gptq", **BASES["both stages"]}, "must be `fdb`"),
    ):
        with pytest.raises(LowbitError, match=message):
            variants_and_recipes(benchmark_module, settings_of(benchmark_module, tmp_path, config))


def test_patterns_choose_variants_and_one_that_fits_none_is_refused(
    benchmark_module: ModuleType, tmp_path: Path
) -> None:
    _, rows = variants_and_recipes(benchmark_module, settings_of(benchmark_module, tmp_path, BASES["both stages"]))
    variants = [variant for variant, _ in rows]
    assert benchmark_module.matching(variants, ()) == variants
    chosen = benchmark_module.matching(variants, ("orientation", "dad, gamma*", "peers/rtn*"))
    assert [variant.name for variant in chosen] == [
        *("positive", "negative", "per-group"),
        *("dad, gamma 0.25", "dad, gamma 0.5", "dad, gamma 1"),
        "rtn, group 64",
    ]
    with pytest.raises(LowbitError, match="no variant fits 'oreintation'; the groups are references"):
        benchmark_module.matching(variants, ("loss", "oreintation"))


def test_a_recipe_runs_once_for_a_seed_and_only_where_the_seed_plays_a_part(
    benchmark_module: ModuleType, tmp_path: Path
) -> None:
    settings = settings_of(benchmark_module, tmp_path, BASES["both stages"])
    _, rows = variants_and_recipes(benchmark_module, settings)
    jobs = benchmark_module.plan_jobs([variant for variant, _ in rows], [4, 5, 6], settings)
    seeds: dict[str, list[int]] = {}
    for job in jobs:
        seeds.setdefault(job.label, []).append(job.seed)
    assert seeds["references/base"] == seeds["peers/gptq, group 32"] == [4, 5, 6]
    assert seeds["references/dbllm-ptq"] == seeds["peers/rtn, group 64"] == [4]
    assert not {"initialisation/mse", "stages of training/both", "training data/both"} & seeds.keys()
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    other = benchmark_module.recipe_of(benchmark_module.AblationJob("base", (), 5), settings)
    assert other.seed == 5
    assert benchmark_module.recipe_key(other) == benchmark_module.recipe_key(rows[0][1])


def test_the_last_documents_of_the_embedded_text_judge_and_are_not_calibrated_on(
    benchmark_module: ModuleType, tmp_path: Path
) -> None:
    import ablation_texts

    settings = settings_of(benchmark_module, tmp_path, BASES["distillation"])
    benchmark_module.write_texts(settings)
    recipe = benchmark_module.recipe_of(benchmark_module.AblationJob("base", (), 0), settings)
    calibrated = Path(recipe.calibration.source).read_text(encoding="utf-8")
    pages = [doc["page"] for doc in ablation_texts._tasks(recipe, settings).tasks["smallworld_text"].eval_docs]
    whole = calibration_path().read_text(encoding="utf-8")
    assert whole.strip() == calibrated.strip() + "\n\n" + "\n\n".join(pages)
    assert len(pages) / (len(pages) + len(calibrated.strip().split("\n\n"))) == pytest.approx(0.15, abs=0.001)

    test = settings_of(benchmark_module, tmp_path / "other", BASES["distillation"], split="test")
    benchmark_module.write_texts(test)
    recipe = benchmark_module.recipe_of(benchmark_module.AblationJob("base", (), 0), test)
    assert recipe.calibration.source is None and not (tmp_path / "other").exists()
    assert len(ablation_texts._tasks(recipe, test).tasks["smallworld_text"].eval_docs) == 120


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of WikiText-2 in the words of the small models, each split in words of its own."""
    mirror = tmp_path_factory.mktemp("mirror")
    folder = mirror / "Salesforce" / "wikitext" / "wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    for start, split in ((3, "train"), (40, "validation"), (70, "test")):
        lines = [" ".join(f"w{start + (5 * line + 3 * word) % 23}" for word in range(20)) for line in range(60)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return mirror


def test_models_of_the_hub_are_judged_by_the_split_that_is_named(
    benchmark_module: ModuleType, parent: ModelFolder, wiki: Path, tmp_path: Path
) -> None:
    import ablation_texts

    for split, word in (("validation", "w40 "), ("test", "w70 ")):
        settings = settings_of(
            benchmark_module,
            tmp_path,
            BASES["distillation"],
            model=str(parent("llama")),
            split=split,
            data_dir=str(wiki),
        )
        recipe = benchmark_module.recipe_of(benchmark_module.AblationJob("base", (), 0), settings)
        [task] = ablation_texts._tasks(recipe, settings).perplexities
        assert task.text.startswith(word) and task.documents == 60
        assert (task.name, task.context_length, recipe.calibration.source) == ("wikitext2_ppl@128", 128, "wikitext2")


def test_the_command_makes_cells_once_renders_and_plots(
    benchmark_module: ModuleType, parent: ModelFolder, wiki: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    config = tmp_path / "base.yaml"
    stage = {"steps": 2, "batch_size": 2}
    content = {
        "calibration": {"n_samples": 6, "seq_len": 16},
        "quantizer": {"group_size": 16},
        "training_data": {"source": "both", "generated": {"n_samples": 4}},
        "reconstruction": stage,
        "distillation": {**stage, "loss": "dad", "evaluate_every": 1},
    }
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    output, plot = tmp_path / "out", tmp_path / "made" / "plot.svg"
    names = ("references/*", "peers/lsq*as the base", "peers/gptq, group 32")
    arguments = [str(parent("llama")), "--config", str(config), "--data_dir", str(wiki), "--seeds", "0,1"]
    command = [sys.executable, benchmark_module.__file__, *arguments, "-o", str(output), "--limit", "3", "--markdown"]
    command += [part for name in names for part in ("--only", name)]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "0 cells are there, 8 are to be made" in first.stderr
    cells = {file.name: json.loads(file.read_text()) for file in (output / "cells").iterdir()}
    assert len(cells) == 8
    by_name = {(cell["label"], cell["seed"]): cell for cell in cells.values()}
    base = by_name["references/base", 0]
    assert base["tokens"] == (2 * 2 + 2 * 2) * 16 and base["steps"]["reconstruction"] == 2
    assert base["data"]["n_samples"] == 10 and base["evaluated"] == 3
    assert base["data"]["sha256"] == by_name["peers/lsq, group 16, trained as the base", 0]["data"]["sha256"]
    assert base["data"]["sha256"] != by_name["references/base", 1]["data"]["sha256"]
    assert base["perplexity"] != by_name["references/base", 1]["perplexity"]
    assert base["perplexity"] != by_name["references/dbllm-ptq", 0]["perplexity"]
    assert by_name["peers/gptq, group 32", 1]["tokens"] == 0
    assert not list(output.rglob("*.safetensors")), "checkpoints are deleted"
    assert len(list((output / "work").rglob("generated/*.npz"))) == 2, "one file a seed"

    again = subprocess.run([*command, "--plot", str(plot)], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "8 cells are there, 0 are to be made" in again.stderr
    assert again.stdout == first.stdout and "| peers | lsq, group 16, trained as the base | 2 | " in again.stdout
    drawn = plot.read_text(encoding="utf-8")
    assert all(text in drawn for text in (">dbllm-ptq<", ">gptq, group 32<", ">peers<"))

    plan = json.loads((output / "plan.json").read_text())
    report = benchmark_module.make_report(plan, [benchmark_module.read_cell(f) for f in (output / "cells").iterdir()])
    assert report.parent == by_name["parent", 0]["perplexity"]
    assert len(report.reference("base").cells) == 2 and len(report.reference("dbllm-ptq").cells) == 1
    with pytest.raises(LowbitError, match="holds the split 'validation', not 'test'"):
        test = settings_of(benchmark_module, output, content, model=str(parent("llama")), split="test")
        benchmark_module.write_plan([variants_and_recipes(benchmark_module, test)[1][0][0]], [0], test)


def make_cell(module: ModuleType, key: str, seed: int, perplexity: float | None, **changes: Any) -> Any:
    signature = {"versions": {"lowbit": "1"}}
    values = {"task": "text", "metric": "word_perplexity", "evaluated": 5, "bits": (2.0, 2.5, 4.0), "seconds": 9.0}
    date = f"2026-01-0{seed + 1}T00:00:00+00:00"
    fields = values | {"core": {"core": "a"}, "tokens": 1000, "perplexity": perplexity} | changes
    return module.AblationCell(key, key, seed, signature, date=date, recipe_sha256="0" * 64, **fields)


@pytest.fixture
def report(benchmark_module: ModuleType) -> Any:
    rows = [("references", "base", "b"), ("references", "dbllm-ptq", "u"), ("orientation", "positive", "p")]
    rows += [("orientation", "per-group", "b"), ("stages", "distillation only", "d"), ("peers", "absent", "x")]
    budgets = {"u": "no training", "d": "fewer tokens"}
    plan = {
        **{"model": "m", "split": "validation", "method": "dbllm", "from": "preset quick", "base_sha256": "f" * 64},
        "seeds": [0, 1, 2],
        "parent": "n",
        "variants": [
            {"group": group, "name": name, "key": key, "budget": budgets.get(key, ""), "seeded": key != "u"}
            for group, name, key in rows
        ],
    }
    cells = [make_cell(benchmark_module, "b", seed, value) for seed, value in enumerate((12.0, 11.0, 13.0))]
    cells += [make_cell(benchmark_module, "p", seed, value) for seed, value in enumerate((15.0, None, 14.0))]
    cells += [make_cell(benchmark_module, "d", seed, 13.0 + seed / 10, tokens=500) for seed in range(3)]
    cells += [make_cell(benchmark_module, "u", seed, 20.0, tokens=0) for seed in (0, 1)]
    cells += [make_cell(benchmark_module, "n", 0, 10.0, tokens=None, bits=None, seconds=None)]
    cells += [make_cell(benchmark_module, "b", 7, 99.0), make_cell(benchmark_module, "stale", 0, 99.0)]
    return benchmark_module.make_report(plan, cells)


def test_rows_show_median_spread_recovery_and_the_difference_from_the_base(report: Any) -> None:
    import ablation_report

    assert ablation_report.table_rows(report) == [
        ["references", "parent", "1", "-", "-", "-", "10.00", "100.0", "-"],
        ["", "base", "3", "2.50", "1.00", "9", "12.00 (11.00 to 13.00)", "80.0", "-"],
        ["", "dbllm-ptq", "1", "2.50", "0.00", "9", "20.00", "0.0", "+66.7"],
        ["orientation", "positive", "3", "2.50", "1.00", "9", "15.00 (14.00 to not finite)", "50.0", "+25.0"],
        ["", "per-group (base)", "3", "2.50", "1.00", "9", "12.00 (11.00 to 13.00)", "80.0", "-"],
        [
            "stages",
            "distillation only (fewer tokens)",
            "3",
            "2.50",
            "0.50",
            "9",
            "13.10 (13.00 to 13.20)",
            "69.0",
            "+9.2",
        ],
    ]
    text = ablation_report.describe(report)
    assert "seeds 0, 1, 2" in text and "1 variants are not made" in text and "1000 training tokens" in text
    assert "several" not in text and "states of it" not in text


def test_failures_and_changes_of_the_core_are_shown(
    benchmark_module: ModuleType, report: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import ablation_report

    cells = [*report.cells, make_cell(benchmark_module, "x", 2, None, error="LowbitError: too little text")]
    cells.append(make_cell(benchmark_module, "d", 0, 15.0, core={"core": "b"}))
    failing = benchmark_module.make_report(report.plan, cells)
    ablation_report.print_report(failing, markdown=True)
    printed = capsys.readouterr()
    assert "| x | seed 2 | failed |" in printed.out and "2 states of it" in printed.out
    assert "x seed 2: FAILED: LowbitError: too little text" in printed.err
    ablation_report.print_report(failing, markdown=False)
    assert "distillation only" in capsys.readouterr().out


def test_the_plot_has_a_row_for_every_variant_and_marks_what_lies_beyond(report: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import ablation_plot

    left, right = ablation_plot.limits(report)
    assert left < 11 and 13.2 < right < 20
    for name in ("first.svg", "second.svg", "picture.png"):
        ablation_plot.draw(report, tmp_path / name)
    text = (tmp_path / "first.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "second.svg").read_text(encoding="utf-8")
    for label in ("references", "base", "positive", "per-group (base)", "distillation only (fewer tokens)", "20.00"):
        assert f">{label}<" in text
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LowbitError, match=r"must end in \.svg"):
        ablation_plot.draw(report, tmp_path / "plot.txt")


def test_a_plot_without_matplotlib_says_what_to_install(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ablation_plot

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LowbitError, match=r"pip install 'lowbit\[report\]'"):
        ablation_plot.draw(report, tmp_path / "plot.svg")


def test_a_cell_is_read_back_as_it_was_written(benchmark_module: ModuleType, tmp_path: Path) -> None:
    cell = make_cell(benchmark_module, "k", 1, 3.5)
    (tmp_path / "cell.json").write_text(json.dumps(asdict(cell)), encoding="utf-8")
    assert benchmark_module.read_cell(tmp_path / "cell.json") == cell
