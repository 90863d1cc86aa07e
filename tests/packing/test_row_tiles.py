"""Row tiles: where every bit and scale lies, and the round trip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit import from_row_tiles, row_tiles_shape, to_row_tiles

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def random_parts(
    rows: int, columns: int, group_size: int, planes: int, offsets: bool, dtype: torch.dtype, seed: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.rand(planes, rows, columns, generator=generator) < 0.5
    groups = -(-columns // group_size)
    scales = torch.randn(planes, rows, groups, generator=generator).to(dtype)
    return tuple(bits), scales, torch.randn(rows, groups, generator=generator).to(dtype) if offsets else None


@given(
    st.integers(1, 40),
    st.integers(1, 150),
    st.sampled_from([1, 20, 32, 64, 200]),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_round_trip_is_bit_exact_in_the_stated_shape(
    rows: int, columns: int, group_size: int, planes: int, offsets: bool, dtype: torch.dtype, seed: int
) -> None:
    bits, scales, shift = random_parts(rows, columns, group_size, planes, offsets, dtype, seed)
    tiles = to_row_tiles(bits, scales, shift, group_size, dtype)
    assert tiles.words.shape == row_tiles_shape(rows, columns, group_size, planes, offsets, dtype)
    assert tiles.words.dtype == torch.int32
    found_bits, found_scales, found_shift = from_row_tiles(tiles)
    assert all(torch.equal(found, plane) for found, plane in zip(found_bits, bits, strict=True))
    assert torch.equal(found_scales, scales)
    assert (found_shift is None) if shift is None else torch.equal(found_shift, shift)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_and_scale_lies_where_the_layout_says(dtype: torch.dtype) -> None:
    rows, columns, group_size = 21, 100, 48
    bits, scales, shift = random_parts(rows, columns, group_size, 2, True, dtype, 0)
    tiles = to_row_tiles(bits, scales, shift, group_size, dtype)
    group_words, plane_words = 2, 2 * 2 * 16
    for row in range(rows):
        for column in range(columns):
            group, inside = divmod(column, group_size)
            for plane in range(2):
                place = (plane * group_words + inside // 32) * 16 + row % 16
                word = int(tiles.words[row // 16, group, place]) % 2**32
                assert bool(word >> (inside % 32) & 1) == bool(bits[plane][row, column])
        for group in range(3):
            numbers = tiles.words[row // 16, group, plane_words:].contiguous().view(dtype)
            assert shift is not None
            expected = [scales[0, row, group], scales[1, row, group], shift[row, group]]
            assert numbers[row % 16 :: 16].tolist() == [float(value) for value in expected]


def test_padding_is_zero() -> None:
    bits, scales, _ = random_parts(17, 70, 40, 1, False, torch.float32, 0)
    ones = (torch.ones_like(bits[0]),)
    tiles = to_row_tiles(ones, scales, None, 40, torch.float32)
    assert int(tiles.words[1, :, :32].reshape(2, 2, 16)[..., 1:].abs().max()) == 0
    assert int(tiles.words[0, 1, 0]) == 2**30 - 1
    assert int(tiles.words[0, 0, 16]) == 2**8 - 1


def test_scales_of_another_number_of_groups_are_refused() -> None:
    bits, scales, shift = random_parts(5, 100, 32, 2, True, torch.float32, 0)
    with pytest.raises(ValueError, match=r"expected scales of shape \(2, 5, 4\), got \(2, 5, 3\)"):
        to_row_tiles(bits, scales[..., :3], shift, 32, torch.float32)
    with pytest.raises(ValueError, match="expected offsets"):
        to_row_tiles(bits, scales, scales[0, :, :3], 32, torch.float32)
