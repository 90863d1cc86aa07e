"""`Method`: a named, partial recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A named, partial recipe: which quantizer with which options, and which packer.

    Args:
        name: What users write after `--method`.
        quantizer: Name of a registered weight quantizer, or `None` for the unquantized parent itself.
        options: Options of the quantizer that differ from its defaults.
        packer: Name of a registered packer, or `None` for the generic one.
        description: One line for `lowbit plugins list`.
        default: Whether `lowbit bench` without `--method` runs it.
    """

    name: str
    quantizer: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    packer: str | None = None
    description: str = ""
    default: bool = False
