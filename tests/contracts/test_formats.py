"""Formats: the dense one, and one written in ten lines that gets everything else for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
import torch
from torch import Tensor

from lowbit import Bits, DenseWeight, QuantizedWeight, Scales, TensorLayout, repeat_groups
from lowbit.contracts.fields import Field, declared_fields
from lowbit.packing import GenericPacker


@dataclass(frozen=True)
class SignWeight(QuantizedWeight):
    signs: Annotated[Tensor, Bits("out", "in")]
    scales: Annotated[Tensor, Scales("out", "groups")]
    group_size: int
    format: ClassVar[str] = "sign"
    nominal_bits: ClassVar[float] = 1.0

    def dequantize(self) -> Tensor:
        scales = repeat_groups(self.scales.float(), self.group_size, self.signs.shape[1])
        return torch.where(self.signs, scales, -scales)


def sign_weight() -> SignWeight:
    generator = torch.Generator().manual_seed(0)
    signs = torch.rand(6, 37, generator=generator) < 0.5
    scales = torch.rand(6, 3, generator=generator).half()
    return SignWeight(signs=signs, scales=scales, group_size=16)


def test_a_format_of_ten_lines_is_packed_and_unpacked_by_the_generic_packer_alone() -> None:
    weight = sign_weight()
    packer = GenericPacker()
    packed = packer.pack(weight)
    unpacked = packer.unpack(packed, SignWeight)
    assert isinstance(unpacked, SignWeight)
    assert torch.equal(unpacked.signs, weight.signs)
    assert torch.equal(unpacked.scales, weight.scales)
    assert unpacked.group_size == 16
    assert torch.equal(unpacked.dequantize(), weight.dequantize())


def test_a_format_of_ten_lines_is_laid_out_and_sized_from_its_declaration_alone() -> None:
    layout = GenericPacker().layout(sign_weight().spec(), SignWeight)
    assert layout == {
        "signs": TensorLayout((6, 5), torch.uint8, "planes"),
        "scales": TensorLayout((6, 3), torch.float16, "scales"),
    }
    assert sum(tensor.bytes for tensor in layout.values()) == 6 * 5 + 6 * 3 * 2


def test_shape_is_logical() -> None:
    assert sign_weight().shape == (6, 37)


def test_from_tensors_rebuilds_a_weight_from_its_spec() -> None:
    weight = sign_weight()
    rebuilt = SignWeight.from_tensors(weight.spec(), weight.tensors())
    assert torch.equal(rebuilt.dequantize(), weight.dequantize())


def test_to_moves_every_tensor_and_keeps_the_parameters() -> None:
    moved = sign_weight().to("meta")
    assert isinstance(moved, SignWeight)
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert moved.group_size == 16


def test_a_format_that_lacks_a_dimension_is_refused() -> None:
    @dataclass(frozen=True)
    class RowOnly(QuantizedWeight):
        means: Annotated[Tensor, Scales("out")]
        format: ClassVar[str] = "row-only"

        def dequantize(self) -> Tensor:
            return self.means

        @property
        def nominal_bits(self) -> float:
            return 1.0

    with pytest.raises(ValueError, match="declares no dimension named in"):
        RowOnly(torch.ones(2)).spec()


def test_dense_weight_claims_bits_and_stores_values() -> None:
    weight = DenseWeight(torch.full((2, 3), 0.5, dtype=torch.float16), nominal_bits=1.25)
    assert weight.nominal_bits == 1.25
    assert weight.dequantize().dtype == torch.float32
    layout = GenericPacker().layout(weight.spec(), DenseWeight)
    assert layout == {"values": TensorLayout((2, 3), torch.float16, "dense values")}


def test_dense_weight_survives_packing_with_its_claim() -> None:
    packer = GenericPacker()
    weight = DenseWeight(torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), 1.5)
    unpacked = packer.unpack(packer.pack(weight), DenseWeight)
    assert unpacked.nominal_bits == 1.5
    assert torch.equal(unpacked.dequantize(), weight.values)


def test_dense_weight_needs_a_claim() -> None:
    with pytest.raises(TypeError, match="nominal_bits"):
        DenseWeight(torch.ones(1, 1))


@pytest.mark.parametrize("values", [torch.ones(2, 2, dtype=torch.float64), torch.tensor([[float("nan")]])])
def test_dense_weight_refuses_what_it_cannot_store(values: Tensor) -> None:
    with pytest.raises(ValueError, match="'values'"):
        DenseWeight(values, 1.0).spec()


def test_every_field_of_a_registered_format_documents_its_role(formats: dict[str, type[QuantizedWeight]]) -> None:
    fields: list[tuple[str, str, Field]] = [
        (name, field_name, field)
        for name, format_class in formats.items()
        for field_name, field in declared_fields(format_class).items()
    ]
    assert fields
    assert [entry[:2] for entry in fields if not entry[2].role or entry[2].role == "other"] == []


@pytest.fixture(scope="module")
def formats() -> dict[str, Any]:
    from lowbit.registry import registry

    return {name: entry.item for name, entry in registry().table("format").items()}
