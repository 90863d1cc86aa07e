"""The lines of Python with which a failure shows how to see it again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def import_line(item: type) -> str:
    """Return the line that makes a class known, or say where it stands if it cannot be imported."""
    name = item.__qualname__
    module = sys.modules.get(item.__module__)
    is_file = item.__module__.startswith("lowbit_plugin_") or item.__module__ == "__main__"
    if is_file or "." in name:
        file = getattr(module, "__file__", None)
        return f"# {name} is in {Path(file).name if file else item.__module__}"
    return f"from {item.__module__} import {name}"


def keywords(options: Mapping[str, Any]) -> str:
    """Return options as they are written in a call, each after a comma."""
    return "".join(f", {name}={value!r}" for name, value in options.items())


def quantizing_code(quantizer: type, options: Mapping[str, Any], weight: str, seed: int = 0) -> str:
    """Return code that quantizes one matrix as the kit does.

    Args:
        quantizer: The class.
        options: Of the quantizer.
        weight: Code that makes the matrix.
        seed: Of the generator.
    """
    seeded = f", seed={seed}" if seed else ""
    return (
        f"{import_line(quantizer)}\n"
        "from lowbit.testing import *\n"
        f"weight = {weight}\n"
        f"quantized = quantize_matrix({quantizer.__name__}, weight{seeded}{keywords(options)})"
    )
