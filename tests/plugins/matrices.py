"""Matrices that every quantizer must survive, and what every quantized weight must hold to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowbit import Packer, QuantizedWeight
from lowbit.packing import GenericPacker
from lowbit.registry import registry

PACKERS = sorted(registry().table("packer"))
SHAPES = [(1, 1), (5, 1), (1, 7), (3, 37), (8, 64), (7, 65), (4, 172), (2, 300)]

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def special_weights() -> dict[str, Tensor]:
    """Finite matrices that have broken quantizers before."""
    mixed = gaussian(6, 70)
    mixed[0] = 0
    mixed[1] = 0.25
    mixed[2] = -0.25
    mixed[3, :64] = 0
    mixed[4, 5] = 1e4
    return {
        "zeros": torch.zeros(3, 40),
        "constant": torch.full((3, 40), 0.3),
        "negative": -gaussian(3, 40).abs() - 1,
        "mixed rows": mixed,
        "huge": gaussian(4, 64) * 1e6,
        "tiny": gaussian(4, 64) * 1e-9,
        "tiny beside ordinary": torch.cat([gaussian(2, 64), gaussian(2, 64) * 1e-7]),
        "two values": gaussian(4, 64).sign(),
        "signed zeros": -torch.zeros(2, 33),
    }


each_special = pytest.mark.parametrize("kind", list(special_weights()))


def packers_for(weight: QuantizedWeight) -> list[Packer]:
    registered = [registry().packer(name)() for name in PACKERS]
    return [GenericPacker(), *(p for p in registered if weight.format in p.formats or "*" in p.formats)]


def assert_same(first: QuantizedWeight, second: QuantizedWeight) -> None:
    assert type(first) is type(second)
    assert first.spec() == second.spec()
    for name, tensor in first.tensors().items():
        other = second.tensors()[name]
        assert tensor.dtype == other.dtype
        assert torch.equal(tensor, other), name


def assert_packs(quantized: QuantizedWeight) -> None:
    for packer in packers_for(quantized):
        packed = packer.pack(quantized)
        assert packed.packer == packer.name
        layout = packer.layout(quantized.spec(), type(quantized))
        assert {n: (tuple(t.shape), t.dtype, t.nbytes) for n, t in packed.tensors.items()} == {
            n: (entry.shape, entry.dtype, entry.bytes) for n, entry in layout.items()
        }
        assert all(tensor.is_contiguous() for tensor in packed.tensors.values())
        unpacked = packer.unpack(packed, type(quantized))
        assert_same(unpacked, quantized)
        assert torch.equal(unpacked.dequantize(), quantized.dequantize())
