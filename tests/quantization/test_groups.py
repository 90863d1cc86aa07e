"""Groups of columns: splitting, joining and repeating."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lowbit import GroupSize, from_groups, repeat_groups, row_chunks, storable_dtype, to_groups
from lowbit.quantization import groups as groups_module
from lowbit.quantization.groups import group_count

quick = settings(max_examples=100, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 50))
group_sizes = st.one_of(st.just(-1), st.integers(1, 60))


@given(shapes, group_sizes)
@quick
def test_joining_undoes_splitting(shape: tuple[int, int], group_size: int) -> None:
    weight = torch.arange(float(shape[0] * shape[1])).reshape(shape) + 1
    grouped = to_groups(weight, group_size)
    assert grouped.shape[:2] == (shape[0], group_count(shape[1], group_size))
    assert torch.equal(from_groups(grouped, shape[1]), weight)


@given(shapes, group_sizes)
@quick
def test_each_group_holds_its_own_columns_and_zeros(shape: tuple[int, int], group_size: int) -> None:
    weight = torch.arange(float(shape[0] * shape[1])).reshape(shape) + 1
    grouped = to_groups(weight, group_size)
    size = shape[1] if group_size == -1 else group_size
    for group in range(grouped.shape[1]):
        columns = weight[:, group * size : (group + 1) * size]
        assert torch.equal(grouped[:, group, : columns.shape[1]], columns)
        assert not grouped[:, group, columns.shape[1] :].any()


@given(shapes, group_sizes)
@quick
def test_a_repeated_scale_stands_over_every_column_of_its_group(shape: tuple[int, int], group_size: int) -> None:
    count = group_count(shape[1], group_size)
    scales = torch.arange(float(shape[0] * count)).reshape(shape[0], count)
    repeated = repeat_groups(scales, group_size, shape[1])
    size = shape[1] if group_size == -1 else group_size
    assert repeated.shape == shape
    assert all(torch.equal(repeated[:, j], scales[:, j // size]) for j in range(shape[1]))


def test_172_columns_in_groups_of_64_make_64_64_and_44() -> None:
    grouped = to_groups(torch.ones(1, 172), 64)
    assert grouped.sum(-1).tolist() == [[64, 64, 44]]


def test_a_group_size_beyond_the_row_costs_no_more_than_the_row() -> None:
    assert to_groups(torch.ones(2, 10), 10**12).shape == (2, 1, 10)
    assert repeat_groups(torch.ones(2, 1), 10**12, 10).shape == (2, 10)


@pytest.mark.parametrize("value", [0, -2, -64])
def test_a_group_size_that_is_no_number_of_columns_is_refused(value: int) -> None:
    with pytest.raises(ValidationError, match="positive number of columns, or -1"):
        TypeAdapter(GroupSize).validate_python(value)


@pytest.mark.parametrize("value", [1, 64, -1])
def test_group_sizes_that_are_accepted(value: int) -> None:
    assert TypeAdapter(GroupSize).validate_python(value) == value


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (7, 3), (7, 100)])
def test_row_chunks_cover_every_row_once_and_in_step(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "CHUNK_ELEMENTS", 6)
    weight, scales = torch.randn(shape), torch.randn(shape[0], 2)
    chunks = list(row_chunks(weight, scales))
    assert torch.equal(torch.cat([chunk[0] for chunk in chunks]), weight)
    assert torch.equal(torch.cat([chunk[1] for chunk in chunks]), scales)
    assert all(len(first) == len(second) and len(first) <= max(1, 6 // shape[1]) for first, second in chunks)


def test_a_scale_is_stored_as_asked_where_nothing_is_lost() -> None:
    scales = torch.tensor([0.0, 6.2e-5, -1.0, 65504.0])
    assert storable_dtype("float16", scales) == torch.float16
    assert storable_dtype("bfloat16", scales * 1e20) == torch.bfloat16
    assert storable_dtype("float32", scales * 1e-40) == torch.float32


def test_a_scale_that_float16_holds_well_enough_stays_float16() -> None:
    # Below 6.1e-5 float16 has fewer digits, but down to about 1e-5 still more than bfloat16.
    assert storable_dtype("float16", torch.tensor([1.0, 3e-5])) == torch.float16


@pytest.mark.parametrize("lost", [6e4 * 2, -7e4, 1.5e-7, -1e-9])
def test_a_scale_that_float16_would_lose_is_stored_as_float32(lost: float) -> None:
    assert storable_dtype("float16", torch.ones(2), torch.tensor([1.0, lost])) == torch.float32
