"""What a declaration says, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
import torch
from torch import Tensor

from lowbit import Bits, Codes, FormatSpec, Indices, QuantizedWeight, Scales
from lowbit.contracts.fields import Field, declared_fields, declared_parameters, resolve_sizes


@dataclass(frozen=True)
class EveryKind(QuantizedWeight):
    """A format with one field of every kind; its numbers mean nothing."""

    mask: Annotated[Tensor, Bits("out", "in")]
    codes: Annotated[Tensor, Codes("width", "out", "in")]
    means: Annotated[Tensor, Scales("out", 2, role="means")]
    columns: Annotated[Tensor, Indices("chosen")]
    width: int
    label: str = "x"
    format: ClassVar[str] = "every-kind"

    def dequantize(self) -> Tensor:
        return self.codes.float()

    @property
    def nominal_bits(self) -> float:
        return 1.0


def every_kind(**changed: Any) -> EveryKind:
    values: dict[str, Any] = {
        "mask": torch.zeros(3, 5, dtype=torch.bool),
        "codes": torch.full((3, 5), 7, dtype=torch.uint8),
        "means": torch.ones(3, 2, dtype=torch.bfloat16),
        "columns": torch.tensor([0, 4], dtype=torch.int32),
        "width": 3,
    }
    return EveryKind(**{**values, **changed})


def test_declared_fields_and_parameters_are_listed_in_the_order_of_the_class_body() -> None:
    assert list(declared_fields(EveryKind)) == ["mask", "codes", "means", "columns"]
    assert declared_parameters(EveryKind) == ("width", "label")


def test_spec_resolves_sizes_dtypes_and_parameters() -> None:
    spec = every_kind().spec()
    assert spec.sizes == {"out": 3, "in": 5, "chosen": 2}
    assert spec.dtypes == {"mask": "bool", "codes": "uint8", "means": "bfloat16", "columns": "int32"}
    assert spec.parameters == {"width": 3, "label": "x"}
    assert spec.weights == 15
    assert [spec.dtype(name) for name in declared_fields(EveryKind)] == [
        torch.bool,
        torch.uint8,
        torch.bfloat16,
        torch.int32,
    ]


def test_roles_have_defaults_and_can_be_given() -> None:
    roles = {name: field.role for name, field in declared_fields(EveryKind).items()}
    assert roles == {"mask": "planes", "codes": "codes", "means": "means", "columns": "indices"}


def test_width_of_codes_comes_from_a_number_or_a_parameter() -> None:
    spec = every_kind().spec()
    assert spec.width(Codes(4, "out")) == 4
    assert spec.width(Codes("width", "out")) == 3
    assert spec.width(Bits("out")) == 1


def test_shape_mixes_names_and_fixed_lengths() -> None:
    assert every_kind().spec().shape(Scales("out", 2, "in")) == (3, 2, 5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": torch.zeros(3, 5, dtype=torch.uint8)}, "'mask' is declared as Bits"),
        ({"codes": torch.zeros(3, 5, dtype=torch.int64)}, "'codes' is declared as Codes"),
        ({"codes": torch.full((3, 5), 8, dtype=torch.uint8)}, "'codes' holds 8, which does not fit 3 bits"),
        ({"width": 0}, "1 to 8 bits, not 0"),
        ({"width": 9}, "1 to 8 bits, not 9"),
        ({"means": torch.ones(3, 2, dtype=torch.float64)}, "'means' is declared as Scales"),
        ({"means": torch.tensor([[1.0, float("nan")]] * 3)}, "'means' has values that are not finite"),
        ({"means": torch.tensor([[1.0, float("inf")]] * 3)}, "'means' has values that are not finite"),
        ({"columns": torch.tensor([0, 4])}, "'columns' is declared as Indices"),
        ({"mask": torch.zeros(5, dtype=torch.bool)}, "'mask' is declared with shape"),
        ({"codes": torch.zeros(3, 6, dtype=torch.uint8)}, "dimension 'in' is 6 here and 5 elsewhere"),
        ({"means": torch.ones(3, 3)}, "dimension 2 is 3 here and 2 elsewhere"),
        ({"label": ["x"]}, "plain field 'label' must be a number, a string or a boolean, not list"),
        ({"label": torch.ones(1)}, "plain field 'label' must be a number, a string or a boolean, not Tensor"),
    ],
)
def test_a_tensor_unlike_its_declaration_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        every_kind(**changed).spec()


def test_largest_code_that_fits_is_accepted() -> None:
    assert every_kind(codes=torch.full((3, 5), 255, dtype=torch.uint8), width=8).spec().parameters["width"] == 8


def test_empty_codes_have_no_range_to_check() -> None:
    empty = every_kind(mask=torch.zeros(3, 0, dtype=torch.bool), codes=torch.zeros(3, 0, dtype=torch.uint8))
    assert empty.spec().sizes["in"] == 0


def test_an_undeclared_tensor_is_refused() -> None:
    @dataclass(frozen=True)
    class Undeclared:
        values: Tensor

    with pytest.raises(TypeError, match=r"Undeclared.values must be declared"):
        declared_fields(Undeclared)


def test_a_class_that_is_no_dataclass_is_refused() -> None:
    class Plain:
        pass

    with pytest.raises(TypeError, match="Plain must be a dataclass"):
        declared_fields(Plain)


def test_a_format_without_the_dataclass_decorator_is_refused_although_its_base_is_one() -> None:
    class Forgotten(QuantizedWeight):
        values: Annotated[Tensor, Scales("out", "in")]

    with pytest.raises(TypeError, match="Forgotten must be a dataclass"):
        declared_fields(Forgotten)


def test_a_format_that_only_renames_another_needs_no_decorator() -> None:
    class Renamed(EveryKind):
        format: ClassVar[str] = "renamed"

    assert declared_fields(Renamed) == declared_fields(EveryKind)


def test_a_width_that_names_no_parameter_is_refused() -> None:
    @dataclass(frozen=True)
    class NoWidth:
        codes: Annotated[Tensor, Codes("bits", "out", "in")]
        bits: ClassVar[int] = 2

    with pytest.raises(TypeError, match="width 'bits' is no plain field of NoWidth"):
        declared_fields(NoWidth)


@pytest.mark.parametrize("make", [lambda: Bits(), lambda: Codes(2)])
def test_bits_and_codes_need_a_dimension_to_be_packed_along(make: Any) -> None:
    with pytest.raises(TypeError, match="at least one dimension"):
        make()


def test_a_scale_without_dimensions_is_one_number() -> None:
    assert resolve_sizes({"scale": Scales()}, {"scale": torch.tensor(1.0)}) == {}


def test_a_spec_refuses_a_dtype_that_no_format_stores() -> None:
    spec = FormatSpec("f", 1, {}, {"a": "complex64"}, {})
    with pytest.raises(ValueError, match="field 'a' has dtype 'complex64'"):
        spec.dtype("a")
    with pytest.raises(ValueError, match="field 'b' has dtype None"):
        spec.dtype("b")


def test_fields_are_compared_by_value() -> None:
    first: Field = Codes(2, "out", "in")
    assert first == Codes(2, "out", "in")
    assert first != Codes(3, "out", "in")
