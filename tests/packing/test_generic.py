"""The generic packer serves every registered format: what it declares is what it makes, and nothing is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowbit import DenseWeight, QuantizedWeight
from lowbit.contracts.fields import Bits, Codes, FormatSpec, Indices, Scales, declared_fields, declared_parameters
from lowbit.packing import GenericPacker
from lowbit.registry import registry

SIZES = [
    {"out": 1, "in": 1, "groups": 1},
    {"out": 3, "in": 37, "groups": 5},
    {"out": 5, "in": 172, "groups": 3},
    {"out": 2, "in": 64, "groups": 1},
]


def random_weight(format_class: type[QuantizedWeight], sizes: dict[str, int], scale_dtype: str) -> QuantizedWeight:
    """A weight of any format with random contents, made from its declaration alone."""
    fields = declared_fields(format_class)
    extra = {d: 4 for field in fields.values() for d in field.shape if isinstance(d, str) and d not in sizes}
    dtypes = {name: scale_dtype if isinstance(field, Scales) else "uint8" for name, field in fields.items()}
    parameters = dict.fromkeys(declared_parameters(format_class), 3)
    spec = FormatSpec(format_class.format, format_class.version, {**sizes, **extra}, dtypes, parameters)
    generator = torch.Generator().manual_seed(sum(sizes.values()))
    tensors: dict[str, Tensor] = {}
    for name, field in fields.items():
        shape = spec.shape(field)
        if isinstance(field, Bits):
            tensors[name] = torch.rand(shape, generator=generator) < 0.5
        elif isinstance(field, Codes):
            tensors[name] = torch.randint(0, 2 ** spec.width(field), shape, generator=generator, dtype=torch.uint8)
        elif isinstance(field, Indices):
            tensors[name] = torch.randint(0, 9, shape, generator=generator, dtype=torch.int32)
        else:
            tensors[name] = torch.randn(shape, generator=generator).to(spec.dtype(name))
    return format_class.from_tensors(spec, tensors)


def format_names() -> list[str]:
    return sorted(registry().table("format"))


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s.values())))
@pytest.mark.parametrize("name", format_names())
def test_layout_equals_what_is_packed_and_the_round_trip_is_bit_exact(
    name: str, sizes: dict[str, int], scale_dtype: str
) -> None:
    format_class = registry().format(name)
    weight = random_weight(format_class, sizes, scale_dtype)
    packer = GenericPacker()
    packed = packer.pack(weight)
    layout = packer.layout(weight.spec(), format_class)
    assert {key: (tuple(t.shape), t.dtype) for key, t in packed.tensors.items()} == {
        key: (entry.shape, entry.dtype) for key, entry in layout.items()
    }
    assert {key: t.nbytes for key, t in packed.tensors.items()} == {key: e.bytes for key, e in layout.items()}
    assert all(tensor.is_contiguous() for tensor in packed.tensors.values())
    unpacked = packer.unpack(packed, format_class)
    assert type(unpacked) is format_class
    assert unpacked.spec() == weight.spec()
    for key, tensor in weight.tensors().items():
        assert unpacked.tensors()[key].dtype == tensor.dtype
        assert torch.equal(unpacked.tensors()[key], tensor)


@pytest.mark.parametrize("name", format_names())
def test_layout_needs_no_tensors(name: str) -> None:
    """A checkpoint's modules are built on meta before any weight is read."""
    format_class = registry().format(name)
    spec = random_weight(format_class, SIZES[1], "float16").spec()
    rebuilt = FormatSpec(spec.format, spec.version, dict(spec.sizes), dict(spec.dtypes), dict(spec.parameters))
    layout = GenericPacker().layout(rebuilt, format_class)
    assert layout == GenericPacker().layout(spec, format_class)
    assert set(layout) == set(declared_fields(format_class))


def test_a_weight_that_breaks_its_declaration_is_not_packed() -> None:
    with pytest.raises(ValueError, match="not finite"):
        GenericPacker().pack(DenseWeight(torch.tensor([[float("inf")]]), 1.0))


def test_strided_tensors_are_stored_contiguously() -> None:
    strided = DenseWeight(torch.arange(6.0).reshape(2, 3).t(), 32.0)
    packed = GenericPacker().pack(strided)
    assert packed.tensors["values"].is_contiguous()
    assert torch.equal(packed.tensors["values"], strided.values)
