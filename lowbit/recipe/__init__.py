"""Recipes: one validated description of a whole run."""

from lowbit.recipe.evaluation import EvaluationSettings
from lowbit.recipe.model import (
    CalibrationSettings,
    ModelSettings,
    PackerSettings,
    QuantizerSettings,
    Recipe,
    canonical_sha256,
)
from lowbit.recipe.overrides import Override, parse_override
from lowbit.recipe.resolve import build_losses, build_quantizer, read_recipe_file, resolve_recipe, rule_quantizer
from lowbit.recipe.rules import Rule, first_match

__all__ = [
    "CalibrationSettings",
    "EvaluationSettings",
    "ModelSettings",
    "Override",
    "PackerSettings",
    "QuantizerSettings",
    "Recipe",
    "Rule",
    "build_losses",
    "build_quantizer",
    "canonical_sha256",
    "first_match",
    "parse_override",
    "read_recipe_file",
    "resolve_recipe",
    "rule_quantizer",
]
