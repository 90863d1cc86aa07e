"""From a method's name, a recipe file and overrides to one validated recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lowbit.contracts import Method, WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.recipe.explain import explain
from lowbit.recipe.model import QuantizerSettings, Recipe
from lowbit.recipe.overrides import Override, apply_overrides, lay_over
from lowbit.registry import Registry, unknown_name

MAXIMUM_RECIPE_BYTES = 1_000_000


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a recipe's YAML as a mapping.

    Raises:
        LowbitError: The file is absent, too large to be a recipe, no YAML, or no mapping.
    """
    try:
        if path.stat().st_size > MAXIMUM_RECIPE_BYTES:
            raise LowbitError(f"recipe {path} has over {MAXIMUM_RECIPE_BYTES} bytes; this is no recipe")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LowbitError(f"recipe {path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise LowbitError(f"recipe {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise LowbitError(f"recipe {path} must be a mapping of keys such as method, model and quantizer")
    return content


def resolve_recipe(
    registry: Registry,
    method: str | None,
    file: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Iterable[Override] = (),
) -> Recipe:
    """Combine, in rising precedence: defaults, the method's part, the recipe file, flags, and overrides.

    Args:
        registry: Where methods, quantizers and packers are looked up.
        method: Name of a method; `None` takes the file's `method`, or names the run after its quantizer.
        file: Content of a recipe file.
        flags: Recipe keys that command-line flags set.
        overrides: `--set` overrides.

    Raises:
        LowbitError: An unknown key, name or option, or a value of the wrong type; the message names the key.
    """
    given = dict(file or {})
    named = given.get("quantizer")
    name = method or given.get("method") or (named.get("name") if isinstance(named, Mapping) else None)
    if not isinstance(name, str):
        raise LowbitError("a recipe needs a `method`, or a `quantizer` with a `name`")
    bespoke = method is None and "method" not in given
    base = {"method": name} if bespoke else _method_part(registry.method(name))
    merged = lay_over(lay_over(base, {**given, "method": name}), flags or {})
    merged = apply_overrides(merged, overrides, name)
    recipe = validate(Recipe, merged, "recipe")
    return _with_resolved_names(registry, recipe)


def validate(model: type[BaseModel], values: Mapping[str, Any], what: str) -> Any:
    """Validate a mapping against a pydantic model.

    Raises:
        LowbitError: With one line for every problem.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise LowbitError(explain(error, model, what)) from error


def quantizer_config(quantizer: type[WeightQuantizer], options: Mapping[str, Any]) -> BaseModel:
    """Validate a quantizer's options, unknown ones refused.

    Raises:
        LowbitError: An unknown option, with the nearest known one, or a value of the wrong type or range.
    """
    known = quantizer.Config.model_fields
    for key in options:
        if key not in known:
            raise LowbitError(unknown_name(f"option of quantizer {quantizer.name}", key, known))
    config: BaseModel = validate(quantizer.Config, options, f"quantizer {quantizer.name}")
    return config


def build_quantizer(registry: Registry, settings: Mapping[str, Any]) -> WeightQuantizer:
    """Make a weight quantizer from `{"name": ..., option: ...}`."""
    options = dict(settings)
    quantizer = registry.quantizer(options.pop("name"))
    return quantizer(quantizer_config(quantizer, options))


def _method_part(method: Method) -> dict[str, Any]:
    part: dict[str, Any] = {"method": method.name}
    if method.quantizer is not None:
        part["quantizer"] = {"name": method.quantizer, **method.options}
    if method.packer is not None:
        part["packer"] = {"name": method.packer}
    return part


def _with_resolved_names(registry: Registry, recipe: Recipe) -> Recipe:
    """Fill in every quantizer option, and check the names of packer and rules."""
    if recipe.packer.name != "plain":
        registry.packer(recipe.packer.name)
    if recipe.quantizer is None:
        return recipe
    for rule in recipe.rules:
        if rule.quantizer is not None:
            build_quantizer(registry, rule_quantizer(recipe.quantizer, rule.quantizer))
    quantizer = registry.quantizer(recipe.quantizer.name)
    config = quantizer_config(quantizer, recipe.quantizer.options)
    settings = QuantizerSettings.model_validate({"name": quantizer.name, **config.model_dump(mode="json")})
    return recipe.model_copy(update={"quantizer": settings})


def rule_quantizer(base: QuantizerSettings, override: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantizer settings that a rule makes of the recipe's; another quantizer starts from its defaults."""
    if override.get("name", base.name) != base.name:
        return dict(override)
    return {"name": base.name, **base.options, **override}
