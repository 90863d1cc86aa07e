"""Registers what is checked for as long as it is checked, where no plugin registered it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lowbit.contracts import DistillationLoss, Kernel, Packer, QuantizedWeight, WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.hookspecs import hookimpl
from lowbit.registry import PluginSource, registry

KIND_OF: tuple[tuple[type, str], ...] = (
    (WeightQuantizer, "weight quantizer"),
    (DistillationLoss, "distillation loss"),
    (QuantizedWeight, "format"),
    (Packer, "packer"),
    (Kernel, "kernel"),
)


class _Given:
    """A plugin of classes that were handed to the kit.

    Args:
        items: The classes.
    """

    def __init__(self, items: list[type]) -> None:
        self._items = items

    def _of(self, base: type) -> list[type]:
        return [item for item in self._items if issubclass(item, base)]

    @hookimpl
    def lowbit_weight_quantizers(self) -> list[type]:
        """Register the quantizers."""
        return self._of(WeightQuantizer)

    @hookimpl
    def lowbit_distillation_losses(self) -> list[type]:
        """Register the losses."""
        return self._of(DistillationLoss)

    @hookimpl
    def lowbit_formats(self) -> list[type]:
        """Register the formats."""
        return self._of(QuantizedWeight)

    @hookimpl
    def lowbit_packers(self) -> list[type]:
        """Register the packers."""
        return self._of(Packer)

    @hookimpl
    def lowbit_kernels(self) -> list[type]:
        """Register the kernels."""
        return self._of(Kernel)


def kind_of(item: type) -> str:
    """Return what a class is: a key of the registry's tables.

    Raises:
        LowbitError: It implements no contract.
    """
    for base, kind in KIND_OF:
        if isinstance(item, type) and issubclass(item, base):
            return kind
    raise LowbitError(f"{item!r} is no quantizer, format, packer, kernel or loss: give the class itself")


def registered_name(item: Any) -> str:
    """Return the name that a class is registered under."""
    name: str = getattr(item, "format" if kind_of(item) == "format" else "name", "")
    return name


def is_registered(item: type) -> bool:
    """Say whether a plugin registered this very class."""
    entry = registry().table(kind_of(item)).get(registered_name(item))
    return entry is not None and entry.item is item


@contextmanager
def registered(*items: type) -> Iterator[None]:
    """Let the registry know classes that no plugin registered, until the context closes.

    Raises:
        LowbitError: Another class has the name already.
    """
    missing = [item for item in dict.fromkeys(items) if not is_registered(item)]
    if not missing:
        yield
        return
    plugin = _Given(missing)
    # A name that is the same each time: checkpoints tell which plugin made them.
    registry().register(plugin, PluginSource(f"{registered_name(missing[0])}, under test", missing[0].__module__))
    try:
        yield
    finally:
        registry().unregister(plugin)
