"""Rules: which layers a pattern means, and which rule decides."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lowbit.recipe import Rule, first_match

DOWN = "model.layers.3.mlp.down_proj"
LAYERS = ["model.layers.0.self_attn.q_proj", DOWN, "model.layers.11.mlp.gate_proj", "lm_head"]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        (DOWN, [DOWN]),
        ("down_proj", [DOWN]),
        ("mlp.down_proj", [DOWN]),
        ("proj", []),
        ("lm_head", ["lm_head"]),
        ("head", []),
        ("*.down_proj", [DOWN]),
        ("*mlp*", [DOWN, "model.layers.11.mlp.gate_proj"]),
        ("model.layers.?.*", [LAYERS[0], DOWN]),
        ("model.layers.[0-3].*", [LAYERS[0], DOWN]),
        ("*", LAYERS),
        ("MLP.down_proj", []),
        (r"re:layers\.(3|11)\.", [DOWN, "model.layers.11.mlp.gate_proj"]),
        (r"re:^lm_head$", ["lm_head"]),
        (r"re:mlp", [DOWN, "model.layers.11.mlp.gate_proj"]),
        ("model.layers.1", []),
    ],
)
def test_names_patterns_suffixes_and_regular_expressions(pattern: str, matched: list[str]) -> None:
    rule = Rule(match=pattern, skip=True)
    assert [name for name in LAYERS if rule.matches(name)] == matched


def test_the_first_rule_that_matches_decides() -> None:
    rules = [Rule(match="q_proj", skip=True), Rule(match="*mlp*", quantizer={"bits": 3}), Rule(match="*", skip=True)]
    assert [first_match(rules, name) for name in LAYERS] == [0, 1, 1, 2]
    assert first_match(rules[:1], DOWN) is None
    assert first_match([], DOWN) is None


@pytest.mark.parametrize(
    "values",
    [
        {"match": "x"},
        {"match": "x", "skip": False},
        {"match": "x", "skip": True, "quantizer": {"bits": 3}},
        {"match": "x", "skip": True, "quantizer": {}},
    ],
)
def test_a_rule_either_skips_or_changes_the_quantizer(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must either set `skip: true` or give a `quantizer`"):
        Rule.model_validate(values)


def test_ignore_is_another_name_of_skip() -> None:
    assert Rule.model_validate({"match": "x", "ignore": True}) == Rule(match="x", skip=True)


def test_a_broken_regular_expression_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'re:\(' is no regular expression"):
        Rule(match="re:(", skip=True)


def test_an_empty_change_is_allowed_and_keeps_a_layer_from_later_rules() -> None:
    rules = [Rule(match="q_proj", quantizer={}), Rule(match="*", skip=True)]
    assert first_match(rules, LAYERS[0]) == 0
