"""Which quantizer works on which layer, by the recipe's rules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowbit.contracts import WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.models import Decoder, WeightTarget
from lowbit.quantization.plan import QuantizationPlan, decoder_targets, make_plan, other_names
from lowbit.recipe import Recipe, Rule, build_quantizer, rule_quantizer
from lowbit.registry import Registry


def plan_for(recipe: Recipe, decoder: Decoder, registry: Registry) -> QuantizationPlan:
    """Lay a recipe's quantizer and rules over a decoder.

    Raises:
        LowbitError: A rule matches nothing or splits the experts of one parameter, the rules leave nothing to quantize,
            or the decoder has large matrices of a kind that cannot be quantized and no rule says to leave them.
    """
    targets = [target for block in decoder_targets(decoder) for target in block]
    rules = recipe.all_rules()
    chosen = choose_quantizers(recipe, targets, registry)
    _require_used(rules, targets, other_names(decoder))
    plan = make_plan(decoder, chosen)
    _require_known(plan, rules)
    return plan


def choose_quantizers(
    recipe: Recipe, targets: Sequence[WeightTarget], registry: Registry
) -> dict[str, WeightQuantizer]:
    """Return the quantizer of every target that the rules do not skip; the first rule that matches wins."""
    assert recipe.quantizer is not None
    rules = recipe.all_rules()
    built: dict[str, WeightQuantizer] = {}
    chosen: dict[str, WeightQuantizer] = {}
    for target in targets:
        position = next((i for i, rule in enumerate(rules) if _matches(rule, target)), None)
        settings: Mapping[str, Any] = {"name": recipe.quantizer.name, **recipe.quantizer.options}
        if position is not None:
            override = rules[position].quantizer
            if override is None:
                continue
            settings = rule_quantizer(recipe.quantizer, override)
        key = json.dumps(settings, sort_keys=True)
        if key not in built:
            built[key] = build_quantizer(registry, settings)
        chosen[target.name] = built[key]
    _require_whole_experts(targets, chosen)
    return chosen


def _matches(rule: Rule, target: WeightTarget) -> bool:
    return rule.matches(target.name) or (target.expert is not None and rule.matches(target.parameter_name))


def _require_used(rules: Sequence[Rule], targets: Sequence[WeightTarget], others: Iterable[str]) -> None:
    used = {next((i for i, rule in enumerate(rules) if _matches(rule, target)), None) for target in targets}
    used |= {i for i, rule in enumerate(rules) for name in others if rule.matches(name)}
    # Everybody writes lm_head although it lies outside the decoder blocks and is never quantized.
    outside = {"lm_head", "embed_tokens"}
    idle = [rule.match for i, rule in enumerate(rules) if i not in used and rule.match not in outside]
    if idle:
        examples = ", ".join(target.name for target in targets[:3])
        raise LowbitError(f"rule {idle[0]!r} applies to no layer; layers are named like {examples}")


def _require_whole_experts(targets: Iterable[WeightTarget], chosen: Mapping[str, WeightQuantizer]) -> None:
    states: dict[str, set[bool]] = {}
    for target in targets:
        if target.expert is not None:
            states.setdefault(target.parameter_name, set()).add(target.name in chosen)
    split = [name for name, state in states.items() if len(state) == 2]
    if split:
        raise LowbitError(f"the rules skip some experts of {split[0]} but not all; skip all of them or none")


def _require_known(plan: QuantizationPlan, rules: Sequence[Rule]) -> None:
    """Refuse experts or other bulk of a kind that cannot be quantized, unless a rule names it."""
    total = sum(target.weights for target in plan.targets()) + sum(plan.others.values())
    bulky = [
        name
        for name, size in plan.others.items()
        if size > 0.02 * total / len(plan.blocks) and not any(rule.matches(name) for rule in rules)
    ]
    if bulky:
        raise LowbitError(
            f"{len(bulky)} large matrices are of a kind that lowbit cannot quantize, such as {bulky[0]}; "
            "add a rule with `skip: true` for them to go on without"
        )
