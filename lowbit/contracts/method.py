"""`Method`: a named, partial recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A named, partial recipe: which quantizer with which options, which packer, and how it is trained.

    Args:
        name: What users write after `--method`.
        quantizer: Name of a registered weight quantizer, or `None` for the unquantized parent itself.
        options: Options of the quantizer that differ from its defaults.
        packer: Name of a registered packer, or `None` for the generic one.
        description: One line for `lowbit plugins list`.
        recipe: Further recipe keys, such as `distillation`.
        presets: Recipe keys by the name of a preset (`quick`, `7b`), laid over `recipe`.
        preset: The preset that holds when none is asked for.
        default: Whether `lowbit bench` without `--method` runs it.
    """

    name: str
    quantizer: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    packer: str | None = None
    description: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preset: str | None = None
    default: bool = False
