"""`--set`: parsing, the prefix for one method, and laying layers over one another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit import LowbitError
from lowbit.recipe import Override, parse_override
from lowbit.recipe.overrides import apply_overrides, lay_over, merge


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=3", Override(("seed",), 3)),
        ("quantizer.group_size=128", Override(("quantizer", "group_size"), 128)),
        ("rtn:quantizer.bits=3", Override(("quantizer", "bits"), 3, "rtn")),
        (" rtn : quantizer . bits = 3", Override(("quantizer", "bits"), 3, "rtn")),
        ("eval.tasks=[a, b]", Override(("eval", "tasks"), ["a", "b"])),
        ("model.path=C:/x=y", Override(("model", "path"), "C:/x=y")),
        ("model.path=null", Override(("model", "path"), None)),
        ("model.path=", Override(("model", "path"), None)),
        ("eval.log_samples=true", Override(("eval", "log_samples"), True)),
        ("rules=[{match: lm_head, skip: true}]", Override(("rules",), [{"match": "lm_head", "skip": True}])),
        ("eval.limit=0.5", Override(("eval", "limit"), 0.5)),
    ],
)
def test_parsing(text: str, expected: Override) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=1", ".a=1", "a.=1", ":seed=3", "rtn:=3", "", "rtn:seed"])
def test_what_is_no_assignment_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(LowbitError, match=r"expected KEY.KEY=VALUE or METHOD:KEY.KEY=VALUE"):
        parse_override(text)


@pytest.mark.parametrize("value", ["[1, 2", "{a: b", "!!python/object/apply:os.getcwd []", "'open", "[" * 5000])
def test_a_value_that_is_no_yaml_is_refused(value: str) -> None:
    with pytest.raises(LowbitError, match="the value is no YAML"):
        parse_override(f"seed={value}")


def test_overrides_for_other_methods_do_not_apply() -> None:
    overrides = [parse_override(text) for text in ("rtn:seed=1", "dual:seed=2")]
    assert apply_overrides({"seed": 0}, overrides, "rtn") == {"seed": 1}
    assert apply_overrides({"seed": 0}, overrides, "other") == {"seed": 0}


def test_overrides_for_one_method_win_wherever_they_stand() -> None:
    overrides = [parse_override(text) for text in ("rtn:seed=1", "seed=2")]
    assert apply_overrides({}, overrides, "rtn") == {"seed": 1}


def test_nothing_that_is_laid_over_is_changed() -> None:
    base: dict[str, Any] = {"model": {"path": "a"}, "quantizer": {"name": "x", "bits": 2}}
    apply_overrides(base, [parse_override("model.path=b"), parse_override("quantizer.bits=3")], "m")
    assert base == {"model": {"path": "a"}, "quantizer": {"name": "x", "bits": 2}}


def test_a_value_that_is_no_mapping_replaces_a_mapping() -> None:
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
    assert merge({"a": 2}, {"a": {"b": 1}}) == {"a": {"b": 1}}
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}


def test_no_quantizer_can_be_laid_over_one() -> None:
    assert lay_over({"quantizer": {"name": "x"}}, {"quantizer": None}) == {"quantizer": None}
    assert lay_over({"quantizer": None}, {"quantizer": {"name": "x"}}) == {"quantizer": {"name": "x"}}


json_values = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
mappings = st.dictionaries(st.sampled_from("abc"), json_values, max_size=3)


@given(mappings, mappings, mappings)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_merging_keeps_every_key_and_the_later_value(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]
) -> None:
    assert merge(first, {}) == merge({}, first) == merge(first, first) == first
    assert merge(first, second).keys() == first.keys() | second.keys()
    last = merge(merge(first, second), third)
    assert all(last[key] == value for key, value in third.items() if not isinstance(value, dict))
