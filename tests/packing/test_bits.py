"""Bit packing against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit import pack_bits, unpack_bits
from lowbit.packing import packed_length

quick = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def rows_of_codes(draw: st.DrawFn) -> tuple[list[list[int]], int, int]:
    """Some rows of codes, their length, and the width of a code."""
    width = draw(st.integers(1, 8))
    length = draw(st.integers(0, 41))
    rows = draw(st.integers(1, 3))
    row = st.lists(st.integers(0, 2**width - 1), min_size=length, max_size=length)
    return draw(st.lists(row, min_size=rows, max_size=rows)), length, width


def packed_by_hand(row: list[int], width: int) -> list[int]:
    """The bytes of a row: one big little-endian integer."""
    number = sum(code << (position * width) for position, code in enumerate(row))
    return list(number.to_bytes(packed_length(len(row), width), "little"))


@given(rows_of_codes())
@quick
def test_packing_equals_one_little_endian_integer_a_row(case: tuple[list[list[int]], int, int]) -> None:
    rows, length, width = case
    packed = pack_bits(torch.tensor(rows, dtype=torch.uint8).reshape(len(rows), length), width)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [packed_by_hand(row, width) for row in rows]


@given(rows_of_codes())
@quick
def test_unpacking_undoes_packing(case: tuple[list[list[int]], int, int]) -> None:
    rows, length, width = case
    values = torch.tensor(rows, dtype=torch.uint8).reshape(len(rows), length)
    assert torch.equal(unpack_bits(pack_bits(values, width), length, width), values)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 31, 33, 172])
def test_packed_length_is_the_smallest_number_of_bytes_that_holds_a_row(length: int, width: int) -> None:
    assert 8 * (packed_length(length, width) - 1) < length * width <= 8 * packed_length(length, width) or length == 0
    assert packed_length(0, width) == 0


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (0,), (2, 0, 9), (2, 3, 9)])
@pytest.mark.parametrize("width", [1, 3])
def test_empty_and_nested_shapes_keep_their_outer_dimensions(shape: tuple[int, ...], width: int) -> None:
    values = torch.ones(shape, dtype=torch.uint8)
    packed = pack_bits(values, width)
    assert packed.shape == (*shape[:-1], packed_length(shape[-1], width))
    assert torch.equal(unpack_bits(packed, shape[-1], width), values)


def test_booleans_are_packed_with_the_first_element_in_the_lowest_bit() -> None:
    assert pack_bits(torch.tensor([True] + [False] * 8 + [True])).tolist() == [1, 2]


def test_the_last_byte_is_filled_with_zeros() -> None:
    assert pack_bits(torch.full((3,), 7, dtype=torch.uint8), 3).tolist() == [255, 1]


@pytest.mark.parametrize("view", [lambda t: t.t(), lambda t: t[:, ::2], lambda t: t[:, 1:]])
def test_strided_tensors_are_packed_by_their_logical_order(view: object) -> None:
    values: Tensor = view(torch.arange(24, dtype=torch.uint8).reshape(4, 6) % 8)  # type: ignore[operator]
    assert torch.equal(pack_bits(values, 3), pack_bits(values.contiguous(), 3))


@pytest.mark.parametrize("width", [0, 9, -1])
def test_a_width_outside_1_to_8_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        pack_bits(torch.zeros(8, dtype=torch.uint8), width)
    with pytest.raises(ValueError, match="1 to 8 bits"):
        unpack_bits(torch.zeros(8, dtype=torch.uint8), 1, width)


def test_unpacking_more_elements_than_there_are_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="9 elements of 1 bits take 2 bytes, not 1"):
        unpack_bits(torch.zeros(4, 1, dtype=torch.uint8), 9)
