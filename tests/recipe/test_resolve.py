"""From names, files, flags and overrides to one validated recipe, and what is refused on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from lowbit import DenseWeight, LayerStatistics, LowbitError, Method, Packer, WeightQuantizer, hookimpl
from lowbit.recipe import (
    QuantizerSettings,
    Recipe,
    build_quantizer,
    parse_override,
    read_recipe_file,
    resolve_recipe,
    rule_quantizer,
)
from lowbit.registry import PluginSource, Registry, registry


class Fine(WeightQuantizer):
    name: ClassVar[str] = "fine"

    class Config(BaseModel):
        group_size: int = Field(64, ge=1)
        steps: int = 20
        kind: Literal["fast", "slow"] = "fast"

    def quantize(self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator) -> DenseWeight:
        return DenseWeight(weight, 1.0)


class Coarse(Fine):
    name: ClassVar[str] = "coarse"

    class Config(BaseModel):
        group_size: int = Field(32, ge=1)
        bits: int = 2


class AnyPacker:
    name = "words"
    formats = ("*",)


class Plugin:
    @hookimpl
    def lowbit_weight_quantizers(self) -> Iterator[type[WeightQuantizer]]:
        yield Fine
        yield Coarse

    @hookimpl
    def lowbit_packers(self) -> Iterator[type[Packer]]:
        yield AnyPacker  # type: ignore[misc]

    @hookimpl
    def lowbit_methods(self) -> Iterator[Method]:
        yield Method("plain-parent", quantizer=None)
        yield Method("fine", quantizer="fine", options={"group_size": 128, "steps": 5}, packer="words")


@pytest.fixture(scope="module")
def plugins() -> Registry:
    made = Registry()
    made.register(Plugin(), PluginSource("test", "test"))
    return made


def options(recipe: Recipe) -> dict[str, Any]:
    assert recipe.quantizer is not None
    return recipe.quantizer.options


def test_a_method_fills_in_every_option_of_its_quantizer(plugins: Registry) -> None:
    recipe = resolve_recipe(plugins, "fine")
    assert recipe.quantizer is not None
    assert recipe.quantizer.name == "fine"
    assert options(recipe) == {"group_size": 128, "steps": 5, "kind": "fast"}
    assert recipe.packer.name == "words"
    assert recipe.backend == "dense"


def test_the_unquantized_parent_has_no_quantizer(plugins: Registry) -> None:
    assert resolve_recipe(plugins, "plain-parent").quantizer is None


def test_precedence_rises_from_method_to_file_to_flags_to_overrides_to_those_for_one_method(plugins: Registry) -> None:
    file = {"seed": 1, "quantizer": {"steps": 6, "kind": "slow"}, "calibration": {"n_samples": 7}}
    flags = {"seed": 2, "calibration": {"seq_len": 99}}
    overrides = [parse_override(text) for text in ("fine:seed=4", "seed=3", "quantizer.steps=8", "other:seed=5")]
    assert resolve_recipe(plugins, "fine").seed == 0
    assert resolve_recipe(plugins, "fine", file).seed == 1
    assert resolve_recipe(plugins, "fine", file, flags).seed == 2
    assert resolve_recipe(plugins, "fine", file, flags, overrides[1:]).seed == 3
    whole = resolve_recipe(plugins, "fine", file, flags, overrides)
    assert whole.seed == 4
    assert options(whole) == {"group_size": 128, "steps": 8, "kind": "slow"}
    assert (whole.calibration.n_samples, whole.calibration.seq_len) == (7, 99)


def test_the_last_of_several_overrides_of_one_key_wins(plugins: Registry) -> None:
    assert resolve_recipe(plugins, "fine", overrides=[parse_override("seed=3"), parse_override("seed=9")]).seed == 9


def test_the_method_asked_for_wins_over_the_file(plugins: Registry) -> None:
    assert resolve_recipe(plugins, "fine", {"method": "plain-parent"}).method == "fine"
    assert resolve_recipe(plugins, None, {"method": "fine"}).method == "fine"


def test_a_quantizer_alone_names_the_run(plugins: Registry) -> None:
    recipe = resolve_recipe(plugins, None, {"quantizer": {"name": "coarse", "bits": 3}})
    assert recipe.method == "coarse"
    assert options(recipe) == {"group_size": 32, "bits": 3}
    assert recipe.packer.name == "plain"


@pytest.mark.parametrize("layer", ["file", "flags", "overrides", "overrides for the method"])
def test_another_quantizer_starts_from_its_own_defaults(plugins: Registry, layer: str) -> None:
    part = {"quantizer": {"name": "coarse", "bits": 4}}
    texts = ["quantizer.bits=4", "quantizer.name=coarse"]
    if layer == "file":
        recipe = resolve_recipe(plugins, "fine", part)
    elif layer == "flags":
        recipe = resolve_recipe(plugins, "fine", {"quantizer": {"steps": 3}}, part)
    else:
        prefix = "fine:" if layer.endswith("method") else ""
        recipe = resolve_recipe(plugins, "fine", overrides=[parse_override(prefix + text) for text in texts])
    assert options(recipe) == {"group_size": 32, "bits": 4}


def test_an_option_given_with_another_quantizer_stays_even_if_it_equals_the_old_method_s(plugins: Registry) -> None:
    recipe = resolve_recipe(plugins, "fine", {"quantizer": {"name": "coarse", "group_size": 128}})
    assert options(recipe) == {"group_size": 128, "bits": 2}


def test_naming_the_same_quantizer_keeps_the_method_s_options(plugins: Registry) -> None:
    assert options(resolve_recipe(plugins, "fine", {"quantizer": {"name": "fine", "kind": "slow"}}))["steps"] == 5


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"sed": 1}, "recipe: unknown key sed; did you mean seed\\?"),
        ({"model": {"pth": "x"}}, "unknown key model.pth; did you mean path\\?"),
        ({"eval": {"num_fewshots": 1}}, "unknown key eval.num_fewshots; did you mean num_fewshot\\?"),
        ({"rules": [{"match": "x", "quantiser": {}}]}, "unknown key rules.0.quantiser; did you mean quantizer\\?"),
        ({"packer": {"zzzz": 1}}, "unknown key packer.zzzz; known here: name"),
        ({"seed": "many"}, "seed: .*integer.*got 'many'"),
        ({"seed": -1}, "seed: .*greater than or equal to 0, got -1"),
        ({"version": 2}, "version: .*1, got 2"),
        ({"model": {"dtype": "float8"}}, "model.dtype: .*float32.*got 'float8'"),
        ({"quantizer": "fine"}, "quantizer: .*got 'fine'"),
        (
            {"quantizer": {"group_sise": 1}},
            "no option of quantizer fine named 'group_sise'; did you mean group_size\\?",
        ),
        ({"quantizer": {"group_size": 0}}, "quantizer fine: group_size: .*greater than or equal to 1, got 0"),
        ({"quantizer": {"kind": "medium"}}, "quantizer fine: kind: .*'fast' or 'slow', got 'medium'"),
        ({"quantizer": {"name": "fien"}}, "no weight quantizer named 'fien'; did you mean fine\\?"),
        ({"packer": {"name": "wrds"}}, "no packer named 'wrds'; did you mean words\\?"),
        ({"rules": [{"match": "x"}]}, "rules.0: rule for 'x' must either"),
        ({"rules": [{"match": "x", "quantizer": {"stepz": 1}}]}, "no option of quantizer fine named 'stepz'"),
        ({"rules": [{"match": "x", "quantizer": {"name": "coars"}}]}, "no weight quantizer named 'coars'"),
        ({"rules": [{"match": "x", "quantizer": {"name": 3}}]}, "the quantizer's `name` must be a string"),
        ({"modules_to_not_convert": ["re:("]}, "modules_to_not_convert: .*no regular expression"),
        ({"ignore": ["a"], "modules_to_not_convert": ["b"]}, "`ignore` is another name of `modules_to_not_convert`"),
        ({1: 2}, "recipe: 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(plugins: Registry, file: dict[str, Any], message: str) -> None:
    with pytest.raises(LowbitError, match=message) as caught:
        resolve_recipe(plugins, "fine", file)
    assert "\n" not in str(caught.value)


def test_several_problems_come_in_one_message(plugins: Registry) -> None:
    with pytest.raises(LowbitError, match=r"backend: .*; unknown key sed; did you mean seed"):
        resolve_recipe(plugins, "fine", {"sed": 1, "backend": "quick"})


def test_an_unknown_method_names_the_nearest(plugins: Registry) -> None:
    with pytest.raises(LowbitError, match="no method named 'fien'; did you mean fine\\?"):
        resolve_recipe(plugins, "fien")


@pytest.mark.parametrize("file", [None, {}, {"seed": 1}, {"quantizer": "fine"}, {"quantizer": {}}, {"method": 3}])
def test_a_recipe_needs_a_method_or_a_quantizer(plugins: Registry, file: dict[str, Any] | None) -> None:
    with pytest.raises(LowbitError, match="needs a `method`, or a `quantizer` with a `name`"):
        resolve_recipe(plugins, None, file)


def test_ignore_is_another_name_of_modules_to_not_convert_in_every_layer(plugins: Registry) -> None:
    recipe = resolve_recipe(plugins, "fine", {"ignore": ["a"]})
    assert recipe.modules_to_not_convert == ("a",)
    changed = resolve_recipe(
        plugins, "fine", {"ignore": ["a"]}, overrides=[parse_override("modules_to_not_convert=[b]")]
    )
    assert changed.modules_to_not_convert == ("b",)
    back = resolve_recipe(plugins, "fine", {"modules_to_not_convert": ["a"]}, {"ignore": ["c"]})
    assert back.modules_to_not_convert == ("c",)


def test_layers_not_to_convert_come_before_the_rules(plugins: Registry) -> None:
    file = {"ignore": ["q_proj"], "rules": [{"match": "*", "quantizer": {"steps": 1}}]}
    rules = resolve_recipe(plugins, "fine", file).all_rules()
    assert [(rule.match, rule.skip) for rule in rules] == [("q_proj", True), ("*", False)]


def test_sha256_is_stable_across_key_order_and_explicit_defaults(plugins: Registry) -> None:
    first = resolve_recipe(plugins, "fine", {"seed": 1, "calibration": {"n_samples": 7, "seq_len": 9}})
    second = resolve_recipe(
        plugins, "fine", {"calibration": {"seq_len": 9, "n_samples": 7}, "seed": 1, "quantizer": {"kind": "fast"}}
    )
    assert first.sha256() == second.sha256()
    assert first.sha256() != resolve_recipe(plugins, "fine", {"seed": 2}).sha256()
    assert len(first.sha256()) == 64


def test_a_recipe_survives_its_own_json(plugins: Registry) -> None:
    file = {"ignore": ["a"], "rules": [{"match": "b", "ignore": True}], "output_path": "out", "eval": {"tasks": "x,y"}}
    recipe = resolve_recipe(plugins, "fine", file)
    again = resolve_recipe(plugins, None, recipe.to_dict())
    assert again == recipe
    assert again.sha256() == recipe.sha256()


def test_evaluation_and_places_do_not_touch_the_checkpoint(plugins: Registry) -> None:
    plain = resolve_recipe(plugins, "fine").checkpoint_part()
    assert plain == resolve_recipe(plugins, "fine", {"eval": {"limit": 3}, "output_path": "x"}).checkpoint_part()
    for file in ({"seed": 1}, {"quantizer": {"steps": 1}}, {"ignore": ["x"]}, {"calibration": {"n_samples": 1}}):
        assert plain != resolve_recipe(plugins, "fine", file).checkpoint_part()


def test_build_quantizer_validates_and_configures(plugins: Registry) -> None:
    quantizer = build_quantizer(plugins, {"name": "coarse", "bits": 3})
    assert isinstance(quantizer, Coarse)
    assert quantizer.config == Coarse.Config(bits=3)
    with pytest.raises(LowbitError, match="did you mean bits"):
        build_quantizer(plugins, {"name": "coarse", "bit": 3})


def test_a_rule_overrides_options_or_switches_the_quantizer() -> None:
    base = QuantizerSettings.model_validate({"name": "fine", "group_size": 128, "steps": 5})
    assert rule_quantizer(base, {"steps": 1}) == {"name": "fine", "group_size": 128, "steps": 1}
    assert rule_quantizer(base, {"name": "fine", "steps": 1})["group_size"] == 128
    assert rule_quantizer(base, {"name": "coarse", "bits": 3}) == {"name": "coarse", "bits": 3}


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: none\nseed: &s 7\ncalibration: {n_samples: *s}\n", encoding="utf-8")
    content = read_recipe_file(path)
    assert content == {"method": "none", "seed": 7, "calibration": {"n_samples": 7}}
    assert resolve_recipe(registry(), None, content).method == "none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"method: [", "is no YAML"),
        (b"a: *nowhere", "is no YAML"),
        (b"!!python/object/apply:os.getcwd []", "is no YAML"),
        (b"[" * 5000, "is no YAML"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"\xff\xfe\xfa", "cannot be read"),
        (b"#" * 1_000_001, "limit is 1000000"),
    ],
    ids=["open bracket", "unknown anchor", "python object", "deep", "list", "empty", "binary", "large"],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(LowbitError, match=message) as caught:
        read_recipe_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_recipe_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="cannot be read"):
        read_recipe_file(tmp_path / "absent.yaml")


@pytest.mark.parametrize("text", ["a: &a [*a]\nmethod: fine\n", "method: fine\nrules: &r [*r]\n"])
def test_a_file_that_contains_itself_is_refused(plugins: Registry, tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LowbitError):
        resolve_recipe(plugins, None, read_recipe_file(path))


@pytest.mark.parametrize("text", ["packer=interleaved", "packer.name=interleaved"])
def test_a_packer_is_named_alone_or_under_its_key(text: str) -> None:
    recipe = resolve_recipe(registry(), "dbllm-ptq", overrides=[parse_override(text)])
    assert recipe.packer.name == "interleaved"
