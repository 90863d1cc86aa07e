"""From a method's name, a recipe file and overrides to one validated recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lowbit.contracts import DistillationLoss, DistillationSettings, LossSettings, Method, WeightQuantizer
from lowbit.documents import MOST_YAML_BYTES, parse_yaml, read_text
from lowbit.errors import LowbitError
from lowbit.recipe.explain import explain
from lowbit.recipe.model import QuantizerSettings, Recipe
from lowbit.recipe.overrides import Override, apply_overrides, lay_over, merge
from lowbit.registry import Registry, unknown_name

RUNS_CODE = (
    *(("model", "trust_remote_code"), ("eval", "trust_remote_code")),
    *(("eval", "confirm_run_unsafe_code"), ("eval", "include_path"), ("eval", "tasks")),
)
"""Recipe keys that let code run which neither lowbit nor an installed plugin brings."""


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a recipe's YAML as a mapping.

    Raises:
        LowbitError: The file is absent, too large to be a recipe, no YAML of plain values, or no mapping.
    """
    content = parse_yaml(read_text(path, "recipe", MOST_YAML_BYTES), f"recipe {path}")
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
    _require_asked_for(given, flags or {})
    named = given.get("quantizer")
    name = method or given.get("method") or (named.get("name") if isinstance(named, Mapping) else None)
    if not isinstance(name, str):
        raise LowbitError("a recipe needs a `method`, or a `quantizer` with a `name`")
    bespoke = method is None and "method" not in given
    overrides = list(overrides)
    asked = apply_overrides({**given, **(flags or {})}, overrides, name).get("preset")
    base = {"method": name} if bespoke else _method_part(registry.method(name), asked)
    merged = lay_over(lay_over(base, {**given, "method": name}), flags or {})
    merged = apply_overrides(merged, overrides, name) | {"preset": base.get("preset")}
    recipe = validate(Recipe, merged, "recipe")
    return _with_resolved_names(registry, recipe)


def _require_asked_for(file: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """Refuse a recipe file that would run code of its own, unless the caller asks for it beside the file.

    Raises:
        LowbitError: It would; the message names the option that allows it.
    """
    trusted = isinstance(model := flags.get("model"), Mapping) and bool(model.get("trust_remote_code"))
    for section, key in RUNS_CODE:
        content, asked = file.get(section), flags.get(section)
        wanted = content.get(key) if isinstance(content, Mapping) else None
        allowed = isinstance(asked, Mapping) and bool(asked.get(key))
        if key == "tasks":
            wanted = _names_files(wanted)
        if wanted and not allowed and not (key == "trust_remote_code" and trusted):
            raise LowbitError(
                f"the recipe sets {section}.{key}, which runs code that comes with a model or a task; "
                f"if you trust it, give --{key} on the command line, too"
            )


def _names_files(tasks: object) -> bool:
    """Say whether tasks are given as files or folders, which may name functions to run."""
    names = tasks.split(",") if isinstance(tasks, str) else tasks
    return isinstance(names, list | tuple) and any("/" in str(n) or str(n).endswith((".yaml", ".yml")) for n in names)


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
    return _options(f"quantizer {quantizer.name}", quantizer.Config, options)


def _options(owner: str, model: type[BaseModel], options: Mapping[str, Any]) -> BaseModel:
    for key in options:
        if key not in model.model_fields:
            raise LowbitError(unknown_name(f"option of {owner}", key, model.model_fields))
    config: BaseModel = validate(model, options, owner)
    return config


def build_quantizer(registry: Registry, settings: Mapping[str, Any]) -> WeightQuantizer:
    """Make a weight quantizer from `{"name": ..., option: ...}`."""
    options = dict(settings)
    quantizer = registry.quantizer(options.pop("name"))
    return quantizer(quantizer_config(quantizer, options))


def _method_part(method: Method, asked: object) -> dict[str, Any]:
    """Return a method's recipe keys, with those of a preset: the one asked for, or the method's own choice.

    A method without presets takes no notice of one, so that several methods can run with the presets of some.
    """
    preset = method.preset if asked is None or not method.presets else str(asked)
    if preset is not None and preset not in method.presets:
        raise LowbitError(unknown_name(f"preset of method {method.name}", preset, method.presets))
    chosen = method.presets[preset] if preset is not None else {}
    part = merge(merge({"method": method.name, "preset": preset}, method.recipe), chosen)
    if method.quantizer is not None:
        part["quantizer"] = {"name": method.quantizer, **method.options, **part.get("quantizer", {})}
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
    return recipe.model_copy(
        update={"quantizer": settings, "distillation": _with_loss_options(registry, recipe.distillation)}
    )


def _with_loss_options(registry: Registry, settings: DistillationSettings | None) -> DistillationSettings | None:
    """Fill in every option of every distillation loss."""
    if settings is None:
        return None
    losses = []
    for loss in settings.loss:
        options = loss_config(registry.distillation_loss(loss.name), loss.options).model_dump(mode="json")
        losses.append(LossSettings(name=loss.name, coefficient=loss.coefficient, **options))
    return settings.model_copy(update={"loss": tuple(losses)})


def build_losses(registry: Registry, settings: DistillationSettings) -> list[tuple[DistillationLoss, float]]:
    """Make the distillation losses of a recipe, each with its coefficient."""
    made = []
    for loss in settings.loss:
        kind = registry.distillation_loss(loss.name)
        made.append((kind(loss_config(kind, loss.options)), loss.coefficient))
    return made


def loss_config(loss: type[DistillationLoss], options: Mapping[str, Any]) -> BaseModel:
    """Validate a distillation loss's options, unknown ones refused.

    Raises:
        LowbitError: An unknown option, with the nearest known one, or a value of the wrong type or range.
    """
    return _options(f"distillation loss {loss.name}", loss.Config, options)


def rule_quantizer(base: QuantizerSettings, override: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantizer settings that a rule makes of the recipe's; another quantizer starts from its defaults."""
    if override.get("name", base.name) != base.name:
        return dict(override)
    return {"name": base.name, **base.options, **override}
