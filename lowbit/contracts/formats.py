"""`QuantizedWeight`: the exact meaning of a quantized matrix, one subclass a format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lowbit.contracts.fields import Codes, FormatSpec, Scales, declared_fields, declared_parameters, resolve_sizes
from lowbit.contracts.plane_form import PlaneForm


@dataclass(frozen=True)
class QuantizedWeight(ABC):
    """A quantized matrix of logical shape [out, in], as declared tensors and plain parameters.

    A subclass is a frozen dataclass whose tensors are declared (`Annotated[Tensor, Bits("out", "in")]`) and whose
    plain fields are numbers, strings or booleans. Packing, the checkpoint's layout and the count of bits follow
    from the declaration. Between them the fields must use the dimensions `"out"` and `"in"`, or the subclass
    overrides `shape`.
    """

    format: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def dequantize(self) -> Tensor:
        """Return the matrix that this weight stands for, exactly, as float32 [out, in]."""

    @property
    @abstractmethod
    def nominal_bits(self) -> float:
        """Bits a weight as the method's paper counts them; it may leave out scales and masks."""

    def plane_form(self) -> PlaneForm | None:
        """Return the weight as sums of scaled bit planes, `None` if it is no such thing.

        A format that offers it runs through every kernel for bit planes.
        """
        return None

    @classmethod
    def has_plane_form(cls, spec: FormatSpec) -> bool:
        """Say whether weights of this declaration have a plane form, for a kernel that has seen no weight yet."""
        return cls.plane_form is not QuantizedWeight.plane_form

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix: (out, in)."""
        sizes = self.spec().sizes
        return sizes["out"], sizes["in"]

    def tensors(self) -> dict[str, Tensor]:
        """Return the declared tensors by name."""
        return {name: getattr(self, name) for name in declared_fields(type(self))}

    def spec(self) -> FormatSpec:
        """Resolve the declaration against the tensors at hand.

        Raises:
            ValueError: A tensor has another shape, dtype or range than its declaration says, or a plain field is
                neither a number nor a string nor a boolean.
        """
        fields = declared_fields(type(self))
        tensors = self.tensors()
        sizes = resolve_sizes(fields, tensors)
        missing = {"out", "in"} - sizes.keys()
        if missing:
            raise ValueError(f"format {self.format!r} declares no dimension named {' or '.join(sorted(missing))}")
        spec = FormatSpec(
            format=self.format,
            version=self.version,
            sizes=sizes,
            dtypes={name: field.stored_dtype(tensors[name]) for name, field in fields.items()},
            parameters={name: _plain(name, getattr(self, name)) for name in declared_parameters(type(self))},
        )
        for name, field in fields.items():
            field.check(name, tensors[name])
            if isinstance(field, Codes):
                _check_range(name, tensors[name], spec.width(field))
        return spec

    @classmethod
    def from_tensors(cls, spec: FormatSpec, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """Build a weight from its resolved declaration and its tensors."""
        arguments: dict[str, Any] = {**spec.parameters, **tensors}
        return cls(**arguments)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """Return the same weight with its tensors on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        parameters = {name: getattr(self, name) for name in declared_parameters(type(self))}
        return type(self)(**parameters, **moved)


LONGEST_TEXT = 64
"""Characters of a plain field; whatever is longer holds weights, and its bytes would be counted nowhere."""


def _plain(name: str, value: Any) -> int | float | str | bool:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(
            f"plain field {name!r} must be a number, a string or a boolean, not {type(value).__name__}; "
            "declare tensors as Annotated[Tensor, Bits(...)] or the like"
        )
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(
            f"plain field {name!r} holds {len(value)} characters, at most {LONGEST_TEXT} are stored: plain fields are "
            "not counted as bits; declare tensors as Annotated[Tensor, Bits(...)] or the like"
        )
    return value


def _check_range(name: str, codes: Tensor, width: int) -> None:
    if not 1 <= width <= 8:
        raise ValueError(f"field {name!r}: codes have 1 to 8 bits, not {width}")
    if codes.numel() and int(codes.max()) >= 2**width:
        raise ValueError(f"field {name!r} holds {int(codes.max())}, which does not fit {width} bits")


@dataclass(frozen=True)
class DenseWeight(QuantizedWeight):
    """Plain dequantized weights with a bit count that the quantizer merely claims.

    It lets a new idea run before it has a format of its own. Its bytes in the file are those of the plain values, so
    the measured bits say 16 or 32, and the claim is shown as nominal only.

    Args:
        values: The weights, [out, in], float16, bfloat16 or float32.
        claimed_bits: Bits a weight that a real format would need, as claimed by the quantizer.
    """

    values: Annotated[Tensor, Scales("out", "in", role="dense values")]
    claimed_bits: float
    format: ClassVar[str] = "dense"

    def __init__(self, values: Tensor, nominal_bits: float | None = None, *, claimed_bits: float | None = None) -> None:
        claim = claimed_bits if nominal_bits is None else nominal_bits
        if claim is None:
            raise TypeError("DenseWeight needs nominal_bits: the bits a weight that the method claims")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "claimed_bits", float(claim))

    def dequantize(self) -> Tensor:
        """Return the values as float32 [out, in]."""
        return self.values.float()

    @property
    def nominal_bits(self) -> float:
        """The claimed bits a weight."""
        return self.claimed_bits
