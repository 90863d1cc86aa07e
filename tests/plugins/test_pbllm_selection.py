"""The choice of salient weights against sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_pbllm import chunks
from lowbit_pbllm.selection import kth_smallest, select_salient
from torch import Tensor

quick = settings(max_examples=100, deadline=None, derandomize=True)
FRACTIONS = [0.0, 0.1, 0.5, 0.77, 0.9, 1.0]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chosen(columns: Tensor, low_frac: float, selection: str, group_size: int = -1) -> Tensor:
    return select_salient(columns, torch.ones(len(columns)), low_frac, group_size, selection)  # type: ignore[arg-type]


@quick
@given(
    st.lists(st.floats(0, 2.0**127, width=32) | st.sampled_from([0.0, 1.0, 1e-45]), min_size=1, max_size=80), st.data()
)
def test_the_kth_smallest_is_that_of_sorting(values: list[float], data: st.DataObject) -> None:
    elements = torch.tensor(values)
    index = data.draw(st.integers(0, len(values) - 1))
    found, below = kth_smallest(lambda: iter(elements.split(7)), index)
    assert found == elements.sort().values[index]
    assert below == int((elements < found).sum())


@pytest.mark.parametrize("low_frac", FRACTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (64, 50)])
def test_exactly_the_share_asked_for_is_binarized(low_frac: float, shape: tuple[int, int]) -> None:
    columns = gaussian(*shape)
    salient = chosen(columns, low_frac, "exact")
    binary = round(low_frac * columns.numel())
    assert int((~salient).sum()) == binary
    smallest = columns.abs().flatten().argsort()[:binary]
    assert not salient.flatten()[smallest].any()


@pytest.mark.parametrize("low_frac", FRACTIONS)
def test_ties_are_binarized_column_by_column_until_the_share_is_reached(low_frac: float) -> None:
    columns = torch.tensor([1.0, -1.0, 2.0]).repeat(20).reshape(12, 5)
    salient = chosen(columns, low_frac, "exact")
    order = columns.abs().flatten().argsort(stable=True)
    expected = torch.ones(60, dtype=torch.bool)
    expected[order[: round(60 * low_frac)]] = False
    assert torch.equal(salient.flatten(), expected)


@pytest.mark.parametrize("low_frac", FRACTIONS)
@pytest.mark.parametrize("ties", [False, True])
def test_the_threshold_is_an_element_of_the_sorted_order_and_takes_its_equals_along(
    low_frac: float, ties: bool
) -> None:
    columns = gaussian(30, 7)
    columns = (columns * 3).round() if ties else columns
    threshold = columns.abs().flatten().sort().values[min(int(210 * low_frac), 209)]
    assert torch.equal(chosen(columns, low_frac, "threshold"), columns.abs() > threshold)


def test_the_threshold_binarizes_one_weight_for_a_share_of_none_and_all_for_a_share_of_all() -> None:
    columns = gaussian(30, 7)
    assert int((~chosen(columns, 0.0, "threshold")).sum()) == 1
    assert not chosen(columns, 1.0, "threshold").any()


@pytest.mark.parametrize("selection", ["exact", "threshold"])
def test_each_group_of_columns_has_its_own_threshold(selection: str) -> None:
    columns = gaussian(70, 6) * torch.linspace(1, 9, 70).unsqueeze(1)
    parts = [chosen(part, 0.8, selection) for part in columns.split(32)]
    assert torch.equal(chosen(columns, 0.8, selection, group_size=32), torch.cat(parts))
    assert not torch.equal(chosen(columns, 0.8, selection), torch.cat(parts))


def test_ranking_by_quotients_is_ranking_by_squares_of_them() -> None:
    columns, divisors = gaussian(40, 30), gaussian(40, seed=1).abs() + 0.1
    salient = select_salient(columns, divisors, 0.9, -1, "exact")
    saliency = columns.double().square() / divisors.double().square().unsqueeze(1)
    assert saliency[salient].min() > saliency[~salient].max()


@pytest.mark.parametrize("selection", ["exact", "threshold"])
def test_chunks_change_nothing(selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (gaussian(60, 11) * 4).round()
    whole = chosen(columns, 0.7, selection)
    monkeypatch.setattr(chunks, "AT_A_TIME", 11)
    assert torch.equal(chosen(columns, 0.7, selection), whole)
