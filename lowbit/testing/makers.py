"""Which quantizer, with which options, makes weights of a format: found by trying those that are registered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from lowbit.contracts import QuantizedWeight, WeightQuantizer
from lowbit.registry import registry
from lowbit.testing.failure import ANY_ERROR
from lowbit.testing.matrices import gaussian
from lowbit.testing.quantizing import quantize_matrix


@dataclass(frozen=True)
class Maker:
    """A quantizer and options of it."""

    quantizer: type[WeightQuantizer]
    options: Mapping[str, Any] = field(default_factory=dict)


def candidates() -> Iterator[Maker]:
    """Yield every registered quantizer: by its defaults, as methods use it, and with one option changed."""
    quantizers = [entry.item for _, entry in sorted(registry().table("weight quantizer").items())]
    yield from (Maker(quantizer) for quantizer in quantizers)
    for method in registry().methods():
        if method.quantizer is not None and method.quantizer in registry().table("weight quantizer"):
            yield Maker(registry().quantizer(method.quantizer), dict(method.options))
    for quantizer in quantizers:
        for name, option in quantizer.Config.model_fields.items():
            for value in _other_values(option.annotation, option.default):
                yield Maker(quantizer, {name: value})


def _other_values(annotation: Any, default: Any) -> list[Any]:
    """Return the values of a switch beside its default."""
    values = [False, True] if annotation is bool else []
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            values.extend(get_args(part))
    return [value for value in values if value != default]


def maker_of(format_class: type[QuantizedWeight]) -> Maker | None:
    """Return the first candidate that makes weights of a format; `None` if none does."""
    for maker in candidates():
        try:
            made = quantize_matrix(maker.quantizer, gaussian(4, 172), **maker.options)
        except ANY_ERROR:  # another class's fault is no matter of this one
            continue
        if type(made) is format_class:
            return maker
    return None
