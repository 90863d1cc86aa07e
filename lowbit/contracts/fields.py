"""Declared fields: how a format says which tensors it consists of, and what follows from that alone."""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar

import torch

Dimension = str | int

SCALE_DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}

FIELD_DTYPES: Mapping[str, torch.dtype] = {
    **SCALE_DTYPES,
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int32": torch.int32,
}


@dataclass(frozen=True, init=False)
class Field(ABC):
    """One declared tensor of a format: its symbolic shape and its part in the accounting of bits.

    Args:
        *shape: Names (`"out"`, `"in"`, `"groups"`, ...) or fixed lengths, outermost first.
        role: The line of the bits report that the tensor's bytes are counted under.
    """

    shape: tuple[Dimension, ...]
    role: str
    default_role: ClassVar[str] = "other"

    def __init__(self, *shape: Dimension, role: str | None = None) -> None:
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "role", role or self.default_role)

    @abstractmethod
    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Raise `ValueError` unless `tensor` can be stored as this field without losing anything."""

    def stored_dtype(self, tensor: torch.Tensor) -> str:
        """Name of the dtype that the field's values have once they are unpacked."""
        return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True, init=False)
class Bits(Field):
    """One bit an element; the tensor is boolean and has at least one dimension."""

    default_role: ClassVar[str] = "planes"
    width: ClassVar[int] = 1

    def __init__(self, *shape: Dimension, role: str | None = None) -> None:
        super().__init__(*shape, role=role)
        _require_dimension(self)

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Raise `ValueError` unless the tensor is boolean."""
        if tensor.dtype != torch.bool:
            raise ValueError(f"field {name!r} is declared as Bits, so it must be a bool tensor; got {tensor.dtype}")


@dataclass(frozen=True, init=False)
class Codes(Field):
    """Unsigned integers of `width` bits, 1 to 8; the tensor is uint8 and has at least one dimension.

    Args:
        width: Bits an element, or the name of the format's parameter that holds it.
        *shape: As in `Field`.
        role: As in `Field`.
    """

    width: int | str
    default_role: ClassVar[str] = "codes"

    def __init__(self, width: int | str, *shape: Dimension, role: str | None = None) -> None:
        super().__init__(*shape, role=role)
        object.__setattr__(self, "width", width)
        _require_dimension(self)

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Raise `ValueError` unless the tensor is uint8."""
        if tensor.dtype != torch.uint8:
            raise ValueError(f"field {name!r} is declared as Codes, so it must be a uint8 tensor; got {tensor.dtype}")


@dataclass(frozen=True, init=False)
class Scales(Field):
    """Floating-point scales or means, signs allowed, stored as float16, bfloat16 or float32."""

    default_role: ClassVar[str] = "scales"

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Raise `ValueError` unless the dtype is one that is stored and every value is finite."""
        if tensor.dtype not in SCALE_DTYPES.values():
            raise ValueError(f"field {name!r} is declared as Scales: float16, bfloat16 or float32, not {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"field {name!r} has values that are not finite in {tensor.dtype}")


@dataclass(frozen=True, init=False)
class Indices(Field):
    """Positions, stored as int32."""

    default_role: ClassVar[str] = "indices"

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Raise `ValueError` unless the tensor is int32."""
        if tensor.dtype != torch.int32:
            raise ValueError(f"field {name!r} is declared as Indices, so it must be int32; got {tensor.dtype}")


def _require_dimension(field: Field) -> None:
    if not field.shape:
        raise TypeError(f"{type(field).__name__} needs at least one dimension: it is packed along its last one")


@cache
def declared_fields(cls: type) -> Mapping[str, Field]:
    """Return the tensors that a format class declares, by name, in the order of the class body.

    Raises:
        TypeError: The class is no dataclass, a tensor lacks its `Annotated[Tensor, Field]` declaration, or the width
            of codes names no plain field.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    # A subclass of a dataclass passes for one although its own fields were never collected.
    annotated = {name for name, hint in hints.items() if ClassVar not in (hint, typing.get_origin(hint))}
    if not dataclasses.is_dataclass(cls) or annotated - {item.name for item in dataclasses.fields(cls)}:
        raise TypeError(f"{cls.__name__} must be a dataclass: put @dataclass(frozen=True) above it")
    fields: dict[str, Field] = {}
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        declared = [m for m in hint.__metadata__ if isinstance(m, Field)] if _is_annotated(hint) else []
        if declared:
            fields[item.name] = declared[0]
        elif hint is torch.Tensor:
            raise TypeError(f"{cls.__name__}.{item.name} must be declared: Annotated[Tensor, Bits(...)] or the like")
    for name, field in fields.items():
        if name in ("weight", "bias") or hasattr(torch.nn.Module, name):
            raise TypeError(
                f"{cls.__name__}.{name}: packed layers have something of that name already; rename the field"
            )
        width = field.width if isinstance(field, Codes) else 1
        if isinstance(width, str) and width not in annotated - fields.keys():
            raise TypeError(f"{cls.__name__}.{name}: the width {width!r} is no plain field of {cls.__name__}")
    return fields


def declared_parameters(cls: type) -> tuple[str, ...]:
    """Return the names of a format class's plain fields (numbers, strings, booleans), in order."""
    fields = declared_fields(cls)
    return tuple(item.name for item in dataclasses.fields(cls) if item.name not in fields)


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated


@dataclass(frozen=True)
class FormatSpec:
    """Everything about one quantized weight but its numbers: enough to build it on the meta device.

    Args:
        format: Name of the format, as registered.
        version: Version of the format that the tensors were written with.
        sizes: Every named dimension, resolved.
        dtypes: Dtype name of each field once unpacked.
        parameters: The format's plain fields.
    """

    format: str
    version: int
    sizes: Mapping[str, int]
    dtypes: Mapping[str, str]
    parameters: Mapping[str, int | float | str | bool]

    def shape(self, field: Field) -> tuple[int, ...]:
        """Resolve a field's symbolic shape."""
        return tuple(d if isinstance(d, int) else self.sizes[d] for d in field.shape)

    def width(self, field: Bits | Codes) -> int:
        """Resolve the number of bits an element of a bit or code field."""
        width = field.width
        return width if isinstance(width, int) else int(self.parameters[width])

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a field's values once they are unpacked.

        Raises:
            ValueError: The field is unknown, or its dtype is none that a format stores.
        """
        dtype = FIELD_DTYPES.get(self.dtypes.get(name, ""))
        if dtype is None:
            known = ", ".join(FIELD_DTYPES)
            raise ValueError(
                f"format {self.format!r}: field {name!r} has dtype {self.dtypes.get(name)!r}; known: {known}"
            )
        return dtype

    @property
    def weights(self) -> int:
        """Number of weights that the quantized matrix stands for."""
        return self.sizes["out"] * self.sizes["in"]


def resolve_sizes(fields: Mapping[str, Field], tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Match symbolic shapes against actual ones.

    Raises:
        ValueError: A tensor has another number of dimensions than declared, or one name stands for two lengths.
    """
    sizes: dict[str, int] = {}
    for name, field in fields.items():
        actual = tuple(tensors[name].shape)
        if len(actual) != len(field.shape):
            raise ValueError(f"field {name!r} is declared with shape {field.shape} but has shape {actual}")
        for dimension, length in zip(field.shape, actual, strict=True):
            expected = dimension if isinstance(dimension, int) else sizes.setdefault(dimension, length)
            if expected != length:
                raise ValueError(f"field {name!r}: dimension {dimension!r} is {length} here and {expected} elsewhere")
    return sizes
