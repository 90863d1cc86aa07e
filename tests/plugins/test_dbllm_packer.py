"""The bit-plane packer: its words, its layout and its round trip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_dbllm import BitPlanePacker, DualBinaryWeight


def random_weight(out: int, length: int, group_size: int, seed: int) -> DualBinaryWeight:
    generator = torch.Generator().manual_seed(seed)
    planes = torch.rand(2, out, length, generator=generator) < 0.5
    groups = 1 if group_size == -1 else -(-length // group_size)
    scales = torch.randn(2, out, groups, generator=generator).half()
    return DualBinaryWeight(planes[0], planes[1], scales[0], scales[1], group_size)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 172])
def test_column_j_lies_in_bit_j_modulo_32_of_word_j_over_32(length: int) -> None:
    weight = random_weight(3, length, -1, seed=length)
    packed = BitPlanePacker().pack(weight)
    for name in ("plane1", "plane2"):
        words, plane = packed.tensors[name], weight.tensors()[name]
        assert words.dtype == torch.int32
        assert words.shape == (3, -(-length // 32))
        for row in range(3):
            unsigned = [word % 2**32 for word in words[row].tolist()]
            bits = [bool(unsigned[j // 32] >> (j % 32) & 1) for j in range(32 * len(unsigned))]
            assert bits[:length] == plane[row].tolist()
            assert not any(bits[length:])


@given(st.integers(1, 4), st.integers(1, 200), st.sampled_from([-1, 1, 7, 64]), st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_round_trip_is_bit_exact_and_as_laid_out(out: int, length: int, group_size: int, seed: int) -> None:
    weight = random_weight(out, length, group_size, seed)
    packer = BitPlanePacker()
    packed = packer.pack(weight)
    layout = packer.layout(weight.spec(), DualBinaryWeight)
    assert {n: (tuple(t.shape), t.dtype, t.nbytes) for n, t in packed.tensors.items()} == {
        n: (entry.shape, entry.dtype, entry.bytes) for n, entry in layout.items()
    }
    unpacked = packer.unpack(packed, DualBinaryWeight)
    for name, tensor in weight.tensors().items():
        assert unpacked.tensors()[name].dtype == tensor.dtype
        assert torch.equal(unpacked.tensors()[name], tensor)
    assert unpacked.spec() == weight.spec()


def test_strided_scales_are_stored_contiguously() -> None:
    weight = random_weight(4, 64, 16, seed=0)
    strided = DualBinaryWeight(weight.plane1, weight.plane2, weight.alpha1.t().contiguous().t(), weight.alpha2, 16)
    assert not strided.alpha1.is_contiguous()
    assert BitPlanePacker().pack(strided).tensors["alpha1"].is_contiguous()
