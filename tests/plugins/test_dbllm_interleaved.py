"""The interleaved packer: its layout, its accounting and its round trip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_dbllm import BitPlanePacker, DualBinaryWeight, InterleavedPacker
from torch import Tensor

from lowbit import PackedWeight
from lowbit.modeling.layouts import get_packer, unpack

PLAIN = "plain"
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def random_weight(
    out: int, length: int, group_size: int, dtypes: tuple[torch.dtype, torch.dtype], seed: int = 0
) -> DualBinaryWeight:
    generator = torch.Generator().manual_seed(seed)
    planes = torch.rand(2, out, length, generator=generator) < 0.5
    groups = 1 if group_size == -1 else -(-length // group_size)
    scales = torch.randn(2, out, groups, generator=generator)
    return DualBinaryWeight(planes[0], planes[1], scales[0].to(dtypes[0]), scales[1].to(dtypes[1]), group_size)


def assert_equal_weights(first: DualBinaryWeight, second: DualBinaryWeight) -> None:
    assert first.spec() == second.spec()
    for name, tensor in first.tensors().items():
        assert second.tensors()[name].dtype == tensor.dtype
        assert torch.equal(second.tensors()[name], tensor)


def packed_tiles(weight: DualBinaryWeight) -> Tensor:
    return InterleavedPacker().pack(weight).tensors["tiles"]


@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from([-1, 1, 7, 32, 48, 64, 128]),
    st.tuples(st.sampled_from(SCALE_DTYPES), st.sampled_from(SCALE_DTYPES)),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_round_trip_is_bit_exact_and_as_laid_out(
    out: int, length: int, group_size: int, dtypes: tuple[torch.dtype, torch.dtype], seed: int
) -> None:
    weight = random_weight(out, length, group_size, dtypes, seed)
    packer = InterleavedPacker()
    packed = packer.pack(weight)
    layout = packer.layout(weight.spec(), DualBinaryWeight)
    assert {n: (tuple(t.shape), t.dtype, t.nbytes) for n, t in packed.tensors.items()} == {
        n: (entry.shape, entry.dtype, entry.bytes) for n, entry in layout.items()
    }
    unpacked = packer.unpack(packed, DualBinaryWeight)
    assert isinstance(unpacked, DualBinaryWeight)
    assert_equal_weights(weight, unpacked)


def test_a_tile_holds_words_of_the_first_plane_then_of_the_second_then_scales() -> None:
    weight = random_weight(20, 130, 64, (torch.float16, torch.float16))
    tiles = packed_tiles(weight)
    assert tiles.shape == (2, 3, 2 * 2 * 16 + 16)
    for plane, name in enumerate(("plane1", "plane2")):
        for row, column in ((0, 0), (3, 31), (15, 32), (16, 63), (19, 64), (7, 129)):
            group, place = divmod(column, 64)
            word = int(tiles[row // 16, group, (plane * 2 + place // 32) * 16 + row % 16]) % 2**32
            assert word >> (place % 32) & 1 == int(weight.tensors()[name][row, column])
    scales = tiles.view(torch.float16)[..., 128:]  # [row tiles, groups, 2 * 16]
    assert torch.equal(scales[1, 2, :4], weight.alpha1[16:, 2])
    assert torch.equal(scales[0, 1, 16:], weight.alpha2[:16, 1])


def test_padding_of_rows_columns_and_words_is_zeros() -> None:
    ones = torch.ones(17, 100, dtype=torch.bool)
    scales = torch.ones(17, 3, dtype=torch.float16)
    tiles = packed_tiles(DualBinaryWeight(ones, ones, scales, scales, 48))
    whole, half = (int(word) % 2**32 for word in tiles[0, 0, :32:16])  # 48 columns: a whole word and half of one
    assert (whole, half) == (2**32 - 1, 2**16 - 1)
    assert int(tiles[0, 2, 0]) == 2**4 - 1  # the last group has 4 columns
    assert not tiles[0, 2, 16:32].any()
    numbers = tiles.view(torch.float16)[1, :, 128:].unflatten(1, (2, 16))
    assert torch.equal(numbers[..., 0], torch.ones(3, 2, dtype=torch.float16))
    assert not numbers[..., 1:].any()


@pytest.mark.parametrize(
    ("first", "second", "stored"),
    [
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
    ],
)
def test_scales_are_stored_in_the_wider_dtype(first: torch.dtype, second: torch.dtype, stored: torch.dtype) -> None:
    weight = random_weight(16, 64, 64, (first, second))
    packer = InterleavedPacker()
    assert packer.row_tiles(packer.pack(weight)).scale_dtype == stored
    assert packed_tiles(weight).shape[2] == 64 + 32 * stored.itemsize // 4


def test_a_group_as_long_as_a_row_is_resolved() -> None:
    packer = InterleavedPacker()
    tiles = packer.row_tiles(packer.pack(random_weight(3, 100, -1, (torch.float16, torch.float16))))
    assert (tiles.rows, tiles.columns, tiles.group_size, tiles.groups) == (3, 100, 100, 1)


def test_row_tiles_are_the_stored_tensor_itself() -> None:
    packed = InterleavedPacker().pack(random_weight(5, 70, 32, (torch.float16, torch.float16)))
    assert InterleavedPacker().row_tiles(packed).words is packed.tensors["tiles"]


def test_two_and_a_half_bits_a_weight_without_padding_in_groups_of_64() -> None:
    spec = random_weight(16, 64, 64, (torch.float16, torch.float16)).spec()
    spec = type(spec)(spec.format, spec.version, {"out": 4096, "in": 4096, "groups": 64}, spec.dtypes, spec.parameters)
    layout = InterleavedPacker().layout(spec, DualBinaryWeight)["tiles"]
    assert 8 * layout.bytes == 2.5 * 4096 * 4096
    assert layout.role == "planes"
    assert layout.also == {"scales": 2 * 4096 * 64 * 2}


def test_padding_has_its_own_line() -> None:
    weight = random_weight(17, 100, 48, (torch.float16, torch.float16))
    layout = InterleavedPacker().layout(weight.spec(), DualBinaryWeight)["tiles"]
    planes, scales = 2 * 17 * 13, 2 * 17 * 3 * 2
    assert layout.also["scales"] == scales
    assert layout.bytes - sum(layout.also.values()) == planes
    assert layout.also["padding"] == packed_tiles(weight).nbytes - planes - scales


@pytest.mark.parametrize("group_size", [-1, 7, 64])
def test_conversion_between_layouts_is_exact(group_size: int) -> None:
    weight = random_weight(33, 172, group_size, (torch.float16, torch.bfloat16))
    packed: PackedWeight = BitPlanePacker().pack(weight)
    for packer in ("interleaved", PLAIN, "interleaved", "bit-planes"):
        packed = get_packer(packer).pack(unpack(packed))
        assert packed.packer == packer
    for name, tensor in BitPlanePacker().pack(weight).tensors.items():
        assert torch.equal(packed.tensors[name], tensor)
    restored = unpack(packed)
    assert isinstance(restored, DualBinaryWeight)
    assert_equal_weights(weight, restored)
