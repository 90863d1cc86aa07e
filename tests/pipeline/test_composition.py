"""What goes with what: computed, run, recorded, and refused before a model is read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from pipeline.composition_parts import (
    Choosing,
    DenseQuantizer,
    Failing,
    LossyPacker,
    Signs,
    SignWeight,
    StuckLoss,
    ThrowingKernel,
    WrongKernel,
    registered,
    shipped,
    shipped_selection,
)
from small_models import make_config

from lowbit.contracts import Method
from lowbit.errors import LowbitError
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.composition import (
    NO_LOSS,
    Combination,
    Selection,
    combinations,
    unmet_formats,
    unresolved_methods,
    variants,
)
from lowbit.pipeline.composition_check import require_composition
from lowbit.pipeline.composition_record import after_run, read_record, record_file, with_tests, write_records
from lowbit.pipeline.composition_run import Outcome, run_combinations
from lowbit.pipeline.forecast import forecast
from lowbit.pipeline.prepare import prepare
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.pipeline.quantizer_trial import try_quantizer
from lowbit.recipe import Recipe, resolve_recipe
from lowbit.registry import registry

QUANTIZERS = shipped("weight quantizer")
TRAINABLE = [name for name in QUANTIZERS if registry().quantizer(name).is_trainable()]
UNTRAINABLE = [name for name in QUANTIZERS if name not in TRAINABLE]


@pytest.fixture(scope="module")
def computed() -> list[Combination]:
    return combinations(registry(), shipped_selection())


@pytest.fixture(scope="module")
def outcomes(computed: list[Combination]) -> list[Outcome]:
    return list(run_combinations(registry(), computed))


def select(**names: str) -> list[Combination]:
    return combinations(registry(), Selection(**{key: (value,) for key, value in names.items()}))  # type: ignore[arg-type]


def run_all(found: list[Combination]) -> list[Outcome]:
    done = list(run_combinations(registry(), found))
    assert done
    return done


# Computed


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_trial_finds_the_formats_of_every_quantizer(name: str) -> None:
    trial = try_quantizer(registry().quantizer(name), {})
    assert trial.problem == ""
    assert trial.specs(trained=False)
    assert set(trial.formats()) <= set(registry().table("format"))
    assert trial.trainable == (name in TRAINABLE)
    assert bool(trial.specs(trained=True)) == trial.trainable


def test_every_method_is_a_variant_of_its_quantizer() -> None:
    found = [method for variant in variants(registry()) for method in variant.methods]
    quantizing = [method.name for method in registry().methods() if method.quantizer is not None]
    left_out = [name for name, _ in unresolved_methods(registry())]
    assert Counter(found) + Counter(left_out) == Counter(quantizing)


def test_the_product_is_complete(computed: list[Combination]) -> None:
    keys = {(c.variant.label, c.loss, c.format, c.packer, c.kernel) for c in computed}
    assert len(keys) == len(computed)
    made = {(variant, loss, format_name) for variant, loss, format_name, _, _ in keys}
    assert len(keys) == len(made) * (1 + len(shipped("packer"))) * len(shipped("kernel"))
    assert {(c.variant.quantizer, c.loss) for c in computed} == {
        (quantizer, loss) for quantizer in QUANTIZERS for loss in (NO_LOSS, *shipped("distillation loss"))
    }


def test_a_loss_is_refused_exactly_where_the_quantizer_offers_no_training(computed: list[Combination]) -> None:
    for one in computed:
        assert ("loss" in one.refusals) == (one.loss != NO_LOSS and one.variant.quantizer in UNTRAINABLE)
        assert one.refusals.get("loss", "offers no training").count("offers no training") == 1


def test_a_packer_is_refused_exactly_where_it_does_not_name_the_format(computed: list[Combination]) -> None:
    for one in computed:
        served = one.packer == "plain" or one.format in registry().packer(one.packer).formats
        assert ("packer" in one.refusals) != served
        assert served or one.format in one.refusals["packer"]


def test_a_kernel_is_refused_in_its_own_words(computed: list[Combination]) -> None:
    reasons = {one.refusals["kernel"] for one in computed if "kernel" in one.refusals}
    assert "it runs on CUDA devices, not on cpu" in reasons
    assert all(one.kernel != "reference" or "kernel" not in one.refusals for one in computed)


def test_a_device_that_is_not_here_is_answered(computed: list[Combination]) -> None:
    found = combinations(registry(), shipped_selection(device="cuda"))
    assert len(found) == len(computed)
    assert {one.device for one in found} == {"cuda"}
    assert any("runs on cpu, not on cuda" in one.refusals.get("kernel", "") for one in found)
    assert any(one.allowed for one in found)


def test_a_device_that_torch_does_not_know_is_refused() -> None:
    with pytest.raises(LowbitError, match="no device 'toaster'"):
        combinations(registry(), Selection(device="toaster"))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("quantizers", "weight quantizer"),
        ("losses", "distillation loss"),
        ("packers", "packer"),
        ("kernels", "kernel"),
        ("methods", "method"),
    ],
)
def test_an_unknown_name_is_refused(key: str, kind: str) -> None:
    with pytest.raises(LowbitError, match=f"no {kind} named 'absent'"):
        select(**{key: "absent"})


def test_a_first_plugin_of_dense_weights_goes_with_the_plain_packer() -> None:
    with registered(DenseQuantizer):
        found = select(quantizers="test-dense", losses=NO_LOSS)
        assert {one.format for one in found} == {"dense"}
        assert {(one.packer, one.kernel) for one in found if one.allowed} == {("plain", "reference")}
        assert all(outcome.passed for outcome in run_all(found))


def test_a_quantizer_that_fails_is_refused_with_its_own_error() -> None:
    with registered(Failing):
        found = select(quantizers="test-failing")
        assert found
        assert all("ArithmeticError: no such luck" in one.refusals["quantizer"] for one in found)


def test_a_format_that_nobody_registered_is_refused() -> None:
    with registered(Signs):
        found = select(quantizers="test-signs", packers="plain")
        assert all("not registered" in one.refusals["quantizer"] for one in found)


def test_a_kernel_that_throws_when_asked_is_refused_with_its_own_error() -> None:
    with registered(ThrowingKernel):
        found = select(quantizers=QUANTIZERS[0], kernels="test-throwing", losses=NO_LOSS, packers="plain")
        assert found
        assert all("KeyError" in one.refusals["kernel"] for one in found)


def test_declared_formats_that_no_trial_shows_are_named() -> None:
    with registered(Choosing, SignWeight):
        chosen = [one for one in variants(registry()) if one.quantizer == "test-choosing"]
        assert [name for _, name in unmet_formats(registry(), chosen)] == ["dense"]


# Run


def test_every_allowed_combination_of_the_box_runs_on_this_machine(outcomes: list[Outcome]) -> None:
    wrong = [(outcome.combination.to_dict(), outcome.problem) for outcome in outcomes if not outcome.passed]
    assert wrong == []
    seen = [outcome.combination for outcome in outcomes]
    assert {one.variant.quantizer for one in seen} == set(QUANTIZERS)
    assert {one.loss for one in seen if one.variant.quantizer in TRAINABLE} >= set(shipped("distillation loss"))
    assert {one.packer for one in seen} == {"plain", *shipped("packer")}


def test_a_packer_that_loses_a_bit_fails() -> None:
    with registered(Signs, SignWeight, LossyPacker):
        [outcome] = run_all(select(quantizers="test-signs", packers="test-lossy", kernels="reference", losses=NO_LOSS))
        assert "changed signs" in outcome.problem


def test_a_kernel_that_multiplies_wrongly_fails() -> None:
    with registered(WrongKernel):
        done = run_all(select(kernels="test-wrong", losses=NO_LOSS, packers="plain", quantizers="rtn"))
        assert all("the product is off by" in outcome.problem for outcome in done)


def test_a_loss_that_trains_nothing_fails() -> None:
    with registered(StuckLoss):
        done = run_all(select(losses="test-stuck", quantizers=TRAINABLE[0], kernels="reference", packers="plain"))
        assert all("changed nothing" in outcome.problem for outcome in done)


# Recorded


def test_the_record_names_every_allowed_combination_of_the_box(computed: list[Combination]) -> None:
    missing = [one.to_dict() for one in with_tests(registry(), computed) if one.allowed and one.tested == "no"]
    assert missing == [], "run `lowbit matrix --verify --record` and commit the files"


def test_a_record_says_when_and_that_a_part_has_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tested.json"
    monkeypatch.setattr("lowbit.pipeline.composition_record.record_file", lambda *_: file)
    found = select(quantizers="rtn", losses=NO_LOSS, kernels="reference", packers="plain")
    assert [one.tested for one in with_tests(registry(), found)] == ["no"]
    assert write_records(registry(), run_all(found)) == [file]
    [today] = {after_run(Outcome(one)).tested for one in found}
    assert [one.tested for one in with_tests(registry(), found)] == [today]

    content = json.loads(file.read_text())
    content["runs"][0]["plugins"]["baselines"] = "0123"
    file.write_text(json.dumps(content))
    assert [one.tested for one in with_tests(registry(), found)] == [f"{today}, before changes to baselines"]


def test_a_failed_combination_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowbit.pipeline.composition_record.record_file", lambda *_: tmp_path / "tested.json")
    [combination] = select(quantizers="rtn", losses=NO_LOSS, kernels="reference", packers="plain")
    failed = Outcome(combination, "it burnt")
    assert write_records(registry(), [failed]) == []
    assert after_run(failed).tested == "failed: it burnt"


def test_a_new_run_replaces_that_of_its_device_and_dtype_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tested.json"
    monkeypatch.setattr("lowbit.pipeline.composition_record.record_file", lambda *_: file)
    names = {"quantizers": ("rtn",), "losses": (NO_LOSS,), "packers": ("plain",), "kernels": ("reference",)}
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        write_records(registry(), run_all(combinations(registry(), Selection(**names, dtype=dtype))))
    assert sorted(run.dtype for run in read_record(file).runs) == ["bfloat16", "float32"]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tested.json"
    file.write_text('{"runs": [{"device": 3}]}')
    with pytest.raises(LowbitError, match=r"tested\.json is no record"):
        read_record(file)


def test_a_record_lies_in_the_package_of_the_quantizer() -> None:
    for name in QUANTIZERS:
        assert record_file(registry(), name).parent.parent.name == "plugins"


# Refused before a model is read


@pytest.fixture
def corrupt(tmp_path: Path) -> Path:
    """A model folder with a configuration, and rubbish in the place of the weights."""
    folder = tmp_path / "corrupt"
    make_config("llama").save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"rubbish")
    return folder


def recipe_for(method: str, model: Path, **keys: object) -> Recipe:
    return resolve_recipe(registry(), method, {"model": {"path": str(model)}, **keys})


def refusal(recipe: Recipe, tmp_path: Path) -> str:
    """What every way to start a run says; all must say the same."""
    ways = {
        "prepare": lambda: prepare(recipe),
        "forecast": lambda: forecast(recipe),
        "quantize": lambda: quantize_to(recipe, tmp_path / "out", HookEvents(recipe)),
        "bench": lambda: list(bench([recipe], BenchOptions(tmp_path / "bench"))),
    }
    said = {}
    for name, way in ways.items():
        with pytest.raises(LowbitError) as error:
            way()
        said[name] = str(error.value)
    assert len(set(said.values())) == 1, said
    assert not (tmp_path / "bench").exists()
    return said["prepare"]


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_distillation_of_a_quantizer_without_training_is_refused_unread(
    name: str, corrupt: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(name, corrupt, distillation={"loss": "kl"})
    text = refusal(recipe, tmp_path)
    assert f"quantizer {name} offers no training" in text
    assert "loss kl" in text
    assert all(trainable in text for trainable in TRAINABLE)


def test_reconstruction_of_a_quantizer_without_training_is_refused_unread(corrupt: Path, tmp_path: Path) -> None:
    assert "leave out `reconstruction`" in refusal(recipe_for("rtn", corrupt, reconstruction={}), tmp_path)


def test_nothing_of_a_refused_run_needs_a_model_folder(tmp_path: Path) -> None:
    text = refusal(recipe_for("rtn", tmp_path / "absent", distillation={}), tmp_path)
    assert "offers no training" in text


@pytest.mark.parametrize("packer", shipped("packer"))
def test_a_packer_that_serves_no_format_of_the_recipe_is_refused_unread(
    packer: str, corrupt: Path, tmp_path: Path
) -> None:
    text = refusal(recipe_for("rtn", corrupt, packer={"name": packer}), tmp_path)
    assert f"packer '{packer}' lays out" in text
    assert "quantizer rtn makes uniform" in text
    assert "choose a packer that serves it: plain" in text


def test_an_unknown_loss_is_refused_with_the_nearest(corrupt: Path) -> None:
    with pytest.raises(LowbitError, match="no distillation loss named 'kll'; did you mean kl"):
        recipe_for("lsq", corrupt, distillation={"loss": "kll"})


def test_an_unknown_loss_of_a_recipe_that_was_not_resolved_is_refused_unread(corrupt: Path, tmp_path: Path) -> None:
    known = recipe_for("lsq", corrupt, distillation={"loss": "kl"})
    assert known.distillation is not None
    loss = known.distillation.loss[0].model_copy(update={"name": "kll"})
    unknown = known.model_copy(update={"distillation": known.distillation.model_copy(update={"loss": (loss,)})})
    assert "did you mean kl" in refusal(unknown, tmp_path)


def test_a_packer_that_serves_one_of_several_formats_is_allowed(tmp_path: Path) -> None:
    packer = shipped("packer")[0]
    [format_name] = registry().packer(packer).formats
    [served] = [name for name in QUANTIZERS if format_name in try_quantizer(registry().quantizer(name), {}).formats()]
    rules = [{"match": "*.down_proj", "quantizer": {"name": served}}]
    require_composition(recipe_for("rtn", tmp_path, packer={"name": packer}, rules=rules), registry())


def test_a_packer_of_a_declared_format_is_allowed_though_no_trial_shows_it(tmp_path: Path) -> None:
    class DensePacker(LossyPacker):
        name = "test-dense-packer"
        formats = ("dense",)

    method = Method("test-choosing", quantizer="test-choosing")
    with registered(Choosing, SignWeight, DensePacker, method):
        require_composition(recipe_for("test-choosing", tmp_path, packer={"name": "test-dense-packer"}), registry())


def test_a_layer_without_training_among_trained_ones_is_refused_from_the_structure_alone(corrupt: Path) -> None:
    transformers.AutoModelForCausalLM.from_config(make_config("llama")).save_pretrained(corrupt)
    rules = [{"match": "*.down_proj", "quantizer": {"name": "rtn"}}]
    recipe = recipe_for("lsq", corrupt, rules=rules, distillation={"loss": "kl"})
    require_composition(recipe, registry())
    with pytest.raises(LowbitError, match="quantizer rtn offers no training"):
        prepare(recipe)


def test_rules_that_leave_nothing_to_the_untrainable_quantizer_are_allowed(corrupt: Path) -> None:
    rules = [{"match": "*_proj", "quantizer": {"name": "lsq"}}]
    recipe = recipe_for("rtn", corrupt, rules=rules, distillation={"loss": "kl"})
    # The parts go together; what fails next is that the weights are rubbish.
    with pytest.raises(LowbitError) as error:
        prepare(recipe)
    assert "training" not in str(error.value)
    assert "model.safetensors" in str(error.value)
