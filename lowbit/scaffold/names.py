"""Every name of a new plugin, from the one that its author chose."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from lowbit.errors import LowbitError

PREFIX = "lowbit"
LONGEST = 40
DISTRIBUTION_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?")
NAMES_OF_CONTRACTS = ("weight", "quantized")
"""Methods whose classes would be called `WeightQuantizer` or `QuantizedWeight`, like the contracts they implement."""


@dataclass(frozen=True)
class PluginNames:
    """The names that a new plugin's files are written with.

    Args:
        distribution: What `pip install` takes; as it was chosen.
        module: What Python imports; starts with `lowbit_`, so that it never stands before another package.
        method: What `--method` takes; also the name of the quantizer and of its format.
        quantizer_class: The class of the quantizer.
        weight_class: The class of the format.
    """

    distribution: str
    module: str
    method: str
    quantizer_class: str
    weight_class: str


def plugin_names(name: str) -> PluginNames:
    """Derive the names of a plugin from that of its distribution.

    Args:
        name: Such as `my-quantizer` or `lowbit-my-quantizer`; both make the method `my-quantizer`.

    Raises:
        LowbitError: It is no name that a distribution can have, or one that lowbit has taken.
    """
    if not DISTRIBUTION_NAME.fullmatch(name) or len(name) > LONGEST:
        raise LowbitError(
            f"{name!r} cannot name a plugin: use at most {LONGEST} ASCII letters, digits, '-', '_' and '.', the first "
            "a letter and the last a letter or digit, such as my-quantizer"
        )
    words = [word.lower() for word in re.split(r"[-_.]+", name)]
    if words[0] == PREFIX:
        words = words[1:]
    if not words or not words[0][0].isalpha():
        raise LowbitError(f"{name!r} cannot name a plugin: a word that starts with a letter must follow {PREFIX!r}")
    method = "-".join(words)
    if method in NAMES_OF_CONTRACTS:
        raise LowbitError(f"{name!r} cannot name a plugin: its classes would be called like lowbit's own contracts")
    stem = "".join(word.capitalize() for word in words)
    names = PluginNames(
        distribution=name,
        module="_".join([PREFIX, *words]),
        method=method,
        quantizer_class=stem if stem.endswith("Quantizer") else f"{stem}Quantizer",
        weight_class=f"{stem}Weight",
    )
    _require_free(names)
    return names


def _require_free(names: PluginNames) -> None:
    """Raise `LowbitError` if a plugin that comes with lowbit has the module."""
    entry_points = importlib.metadata.distribution(PREFIX).entry_points
    own = {entry.value.split(":")[0].split(".")[0] for entry in entry_points if entry.group == PREFIX}
    if names.module in own:
        raise LowbitError(
            f"{names.distribution!r} cannot name a plugin: its module would be {names.module}, which comes with "
            "lowbit; choose another name"
        )
