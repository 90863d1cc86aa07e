"""What makes a run the same run: everything that decides the bytes of its checkpoint."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lowbit.calibration
import lowbit.distillation
import lowbit.quantization
from lowbit.calibration import CalibrationTokens
from lowbit.contracts import FidelityConfig
from lowbit.recipe import Recipe, build_quantizer, canonical_sha256
from lowbit.registry import PluginSource, Registry, content_of

PACKAGES = ("lowbit", "torch", "transformers", "safetensors", "tokenizers")


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the installed versions of packages."""
    return {package: importlib.metadata.version(package) for package in packages}


def plugin_versions(sources: Iterable[PluginSource]) -> dict[str, str]:
    """Return version and content hash of plugins, by name and distribution."""
    return {f"{s.plugin} ({Path(s.distribution).name})": f"{s.version} {s.content}".strip() for s in sources}


def plugins_of(recipe: Recipe, registry: Registry) -> list[PluginSource]:
    """Return the plugins whose quantizers, packer and losses a recipe uses; others cannot change its checkpoint."""
    settings = [rule.quantizer for rule in recipe.rules if rule.quantizer]
    names = {recipe.quantizer.name if recipe.quantizer else None, *(override.get("name") for override in settings)}
    used = [registry.source("weight quantizer", name) for name in sorted(filter(None, names))]
    losses = () if recipe.distillation is None else recipe.distillation.loss
    used += [registry.source("distillation loss", loss.name) for loss in losses]
    packer = recipe.packer.name
    return used + ([registry.source("packer", packer)] if packer in registry.table("packer") else [])


def core_contents(recipe: Recipe) -> dict[str, str]:
    """Return the content hashes of the core's rooms that decide the numbers of a recipe's checkpoint."""
    trained = (lowbit.distillation,) if recipe.trains else ()
    return {module.__name__: content_of(module) for module in (lowbit.calibration, lowbit.quantization, *trained)}


def resolved_options(recipe: Recipe, registry: Registry) -> dict[str, Any] | None:
    """Return the options that the recipe's quantizer computes with, switches set by `fidelity` included."""
    if recipe.quantizer is None:
        return None
    config = build_quantizer(registry, {"name": recipe.quantizer.name, **recipe.quantizer.options}).config
    resolved = config.resolved() if isinstance(config, FidelityConfig) else config
    options: dict[str, Any] = resolved.model_dump(mode="json")
    return options


def calibration_record(tokens: CalibrationTokens | None, seed: int) -> dict[str, Any] | None:
    """Describe calibration tokens, or return `None` without calibration."""
    if tokens is None:
        return None
    samples, length = tokens.tokens.shape
    return {
        "name": tokens.name,
        "n_samples": samples,
        "seq_len": length,
        "seed": seed,
        "sha256": tokens.sha256,
        "domain": tokens.domain,
    }


def run_signature(
    recipe: Recipe, parent_sha256: str, calibration: dict[str, Any] | None, registry: Registry
) -> dict[str, Any]:
    """Return what a command must share with a journal or checkpoint to continue or reuse it."""
    part = recipe.checkpoint_part()
    if calibration is None:
        part.pop("calibration")
    part["model"] = {"sha256": parent_sha256}
    return {
        "recipe": part,
        "recipe_sha256": canonical_sha256(part),
        "calibration": calibration,
        "options": resolved_options(recipe, registry),
        "versions": package_versions(),
        "core": core_contents(recipe),
        "plugins": plugin_versions(plugins_of(recipe, registry)),
    }
