"""Refuses a recipe whose parts do not go together, before anything of the model is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lowbit.contracts import Packer, WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.packing import GenericPacker
from lowbit.pipeline.quantizer_trial import try_quantizer
from lowbit.recipe import Recipe, build_losses, rule_quantizer
from lowbit.registry import Registry


def require_composition(recipe: Recipe, registry: Registry) -> None:
    """Check that quantizers, losses and packer of a recipe go together, whatever the model.

    What depends on the model, namely which of several quantizers its layers get, is checked with the plan.

    Raises:
        LowbitError: No quantizer can be trained although the recipe trains, no format is served by the packer, or a
            name or an option is unknown. The message says what would be allowed.
    """
    if recipe.quantizer is None:
        return
    if recipe.distillation is not None:
        build_losses(registry, recipe.distillation)
    chosen = _chosen(recipe)
    for settings in chosen:
        registry.quantizer(settings["name"])
    if recipe.trains:
        _require_training(recipe, chosen, registry)
    if recipe.packer.name != GenericPacker.name:
        _require_packer(registry.packer(recipe.packer.name), chosen, registry)


def serves(packer: type[Packer], format_name: str) -> bool:
    """Say whether a packer lays out a format."""
    return format_name in packer.formats or "*" in packer.formats


def packer_classes(registry: Registry) -> dict[str, type[Packer]]:
    """Return the generic packer and every registered one, by name."""
    registered = {name: entry.item for name, entry in sorted(registry.table("packer").items())}
    return {GenericPacker.name: GenericPacker, **registered}


def _chosen(recipe: Recipe) -> list[dict[str, Any]]:
    """Return name and options of the recipe's quantizer and of those that its rules choose."""
    assert recipe.quantizer is not None
    base = {"name": recipe.quantizer.name, **recipe.quantizer.options}
    overrides = [rule.quantizer for rule in recipe.rules if rule.quantizer is not None]
    return [base, *(rule_quantizer(recipe.quantizer, override) for override in overrides)]


def _require_training(recipe: Recipe, chosen: Iterable[Mapping[str, Any]], registry: Registry) -> None:
    names = list(dict.fromkeys(settings["name"] for settings in chosen))
    if any(registry.quantizer(name).is_trainable() for name in names):
        return
    stages = [f"`{stage}`" for stage in ("reconstruction", "distillation") if getattr(recipe, stage) is not None]
    losses = [] if recipe.distillation is None else [loss.name for loss in recipe.distillation.loss]
    through = f" through the loss {_listed(losses)}" if losses else ""
    trainable = sorted(name for name, entry in registry.table("weight quantizer").items() if _trains(entry.item))
    raise LowbitError(
        f"method {recipe.method!r} trains{through}, but quantizer {_listed(names)} offers no training: it has no "
        f"`parametrize`; leave out {' and '.join(stages)}, or choose a quantizer that offers training: "
        f"{', '.join(trainable) or 'none is installed'} (`lowbit matrix` shows what goes together)"
    )


def _trains(quantizer: type[WeightQuantizer]) -> bool:
    return quantizer.is_trainable()


def _require_packer(packer: type[Packer], chosen: Iterable[Mapping[str, Any]], registry: Registry) -> None:
    """Check that the packer serves at least one format; weights of the others get the generic layout."""
    formats: set[str] = set()
    names = []
    for settings in chosen:
        options = {key: value for key, value in settings.items() if key != "name"}
        trial = try_quantizer(registry.quantizer(settings["name"]), options)
        if trial.problem:
            return  # What it makes is not known; the run will say what is wrong with it.
        names.append(settings["name"])
        formats.update(trial.formats())
    if any(serves(packer, name) for name in formats):
        return
    serving = [name for name, item in packer_classes(registry).items() if any(serves(item, f) for f in formats)]
    raise LowbitError(
        f"packer {packer.name!r} lays out weights of format {', '.join(packer.formats)}, but quantizer "
        f"{_listed(list(dict.fromkeys(names)))} makes {', '.join(sorted(formats))}; choose a packer that serves it: "
        f"{', '.join(serving)} (`lowbit matrix` shows what goes together)"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
