"""The checks of whatever is registered: which class of the kit, about what, with which options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.contracts import Kernel, Method, Packer, QuantizedWeight, WeightQuantizer
from lowbit.errors import LowbitError, UnknownNameError
from lowbit.recipe import resolve_recipe
from lowbit.registry import KINDS, Registered, registry, unknown_name
from lowbit.testing.conformance import Conformance
from lowbit.testing.failure import ANY_ERROR
from lowbit.testing.format import FormatConformance
from lowbit.testing.kernel import KernelConformance
from lowbit.testing.loss import LossConformance
from lowbit.testing.makers import Maker, candidates, maker_of
from lowbit.testing.matrices import gaussian
from lowbit.testing.packer import PackerConformance
from lowbit.testing.packers import packers_for, serves
from lowbit.testing.products import workload_on_cpu
from lowbit.testing.quantizer import QuantizerConformance
from lowbit.testing.quantizing import quantize_matrix

CHECKED_KINDS = ("weight quantizer", "format", "packer", "kernel", "distillation loss", "method")


def suites_for(name: str) -> dict[str, type[Conformance]]:
    """Return the checks of everything that a name stands for, by what is checked.

    Args:
        name: Of a quantizer, format, packer, kernel, loss or method, or of a plugin or distribution: then of everything
            that it registered.

    Raises:
        UnknownNameError: Nothing has that name, or there is nothing to check about it.
    """
    found: dict[str, type[Conformance]] = {}
    tables = {kind: registry().table(kind) for kind in CHECKED_KINDS}
    named = {kind: {name: table[name]} for kind, table in tables.items() if name in table}
    if not named:
        named = {kind: {key: e for key, e in table.items() if _is_from(e, name)} for kind, table in tables.items()}
    for kind, entries in named.items():
        for key, entry in sorted(entries.items()):
            found |= suites_of(kind, key, entry.item)
    if not found:
        known = {key for kind in KINDS for key in registry().table(kind)}
        plugins = {part for source in registry().plugins for part in (source.plugin, source.distribution)}
        raise UnknownNameError(unknown_name("plugin, or item of one,", name, known | plugins))
    return found


def _is_from(entry: Registered, name: str) -> bool:
    return name in (entry.source.plugin, entry.source.distribution)


def suites_of(kind: str, name: str, item: Any) -> dict[str, type[Conformance]]:
    """Return the checks of one registered thing, by what is checked."""
    title = f"{kind} {name}"
    if kind == "weight quantizer":
        return {title: _suite(QuantizerConformance, quantizer=item)}
    if kind == "distillation loss":
        return {title: _suite(LossConformance, loss=item)}
    if kind == "method":
        return _suites_of_method(item)
    if kind == "format":
        maker = maker_of(item)
        what = f"no registered quantizer makes weights of format {name!r}"
        return {title: _made_by(FormatConformance, maker, what)}
    if kind == "packer":
        what = f"no registered quantizer makes weights that packer {name!r} serves"
        return {title: _made_by(PackerConformance, _maker_for_packer(item), what, packer=item)}
    if kind == "kernel":
        what = f"no registered quantizer makes weights that kernel {name!r} could serve"
        return {title: _made_by(KernelConformance, _maker_for_kernel(item), what, kernel=item)}
    return {}


WITHOUT_WEIGHTS = {
    "test_skips_name_checks_and_give_reasons",
    "test_it_says_what_it_is",
    "test_the_formats_it_serves_are_registered",
}
"""Checks that need no quantized weight."""


def _suite(base: type[Conformance], **attributes: Any) -> type[Conformance]:
    return type(base.__name__, (base,), attributes)


def _made_by(base: type[Conformance], maker: Maker | None, what: str, **attributes: Any) -> type[Conformance]:
    """Return the checks with weights of a maker, or with every check skipped where there is none."""
    if maker is None:
        reason = f"{what}; name one in a subclass of {base.__name__}"
        skips = {check: reason for check in base.checks() if check not in WITHOUT_WEIGHTS}
        return _suite(base, skips=skips, **attributes)
    return _suite(base, quantizer=maker.quantizer, options=maker.options, **attributes)


def _suites_of_method(method: Method) -> dict[str, type[Conformance]]:
    """Return the checks of a method's quantizer, packer and losses, with the options that the method gives them.

    Raises:
        LowbitError: The method does not resolve to a recipe.
    """
    recipe = resolve_recipe(registry(), method.name)
    suites: dict[str, type[Conformance]] = {}
    if recipe.quantizer is None:
        raise LowbitError(f"method {method.name!r} quantizes nothing: there is nothing to check")
    quantizer, options = registry().quantizer(recipe.quantizer.name), dict(method.options)
    title = f"quantizer {quantizer.name} of method {method.name}"
    suites[title] = _suite(QuantizerConformance, quantizer=quantizer, options=options)
    if recipe.packer.name in registry().table("packer"):
        packer = registry().packer(recipe.packer.name)
        title = f"packer {packer.name} of method {method.name}"
        suites[title] = _suite(PackerConformance, packer=packer, quantizer=quantizer, options=options)
    for loss in () if recipe.distillation is None else recipe.distillation.loss:
        kind = registry().distillation_loss(loss.name)
        suites[f"loss {loss.name} of method {method.name}"] = _suite(LossConformance, loss=kind, options=loss.options)
    return suites


def _weights_of(maker: Maker) -> QuantizedWeight | None:
    try:
        return quantize_matrix(maker.quantizer, gaussian(8, 64), **maker.options)
    except ANY_ERROR:  # another class's fault is no matter of this one
        return None


def _maker_for_packer(packer: type[Packer]) -> Maker | None:
    made = ((maker, _weights_of(maker)) for maker in candidates())
    return next((maker for maker, weight in made if weight is not None and serves(packer, weight.format)), None)


def _maker_for_kernel(kernel: type[Kernel]) -> Maker | None:
    """Return what makes weights that a kernel serves here; failing that, of a format that shares its plugin."""
    fallback: Maker | None = None
    source = registry().source("kernel", kernel.name)
    for maker in candidates():
        weight = _weights_of(maker)
        if weight is None:
            continue
        if any(kernel().supports(workload_on_cpu(weight, packer)).served for packer in packers_for(weight)):
            return maker
        home = registry().table("format").get(weight.format)
        if fallback is None and home is not None and home.source == source:
            fallback = maker
    return fallback


def quantizer_suite(quantizer: type[WeightQuantizer], options: Mapping[str, Any]) -> type[QuantizerConformance]:
    """Return the checks of a quantizer with some of its options."""
    return type("Options", (QuantizerConformance,), {"quantizer": quantizer, "options": options})
