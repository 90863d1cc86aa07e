"""Statistics do not depend on how samples are dealt out to processes: not in one bit."""

from __future__ import annotations

import math

import pytest
import torch
from calibration.thread_ranks import ThreadRanks, in_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowbit.calibration import BlockObserver
from lowbit.calibration.accumulator import InputAccumulator, column_exponents, power_of_two
from lowbit.contracts import LayerStatistics, StatisticsNeed
from lowbit.models import WeightTarget
from lowbit.quantization.sharing import own_samples

NEEDS = (StatisticsNeed.HESSIAN, StatisticsNeed.SECOND_MOMENT)
COLUMNS = 5


def target(name: str) -> WeightTarget:
    return WeightTarget(name, name, "weight", None, False, COLUMNS, COLUMNS)


def draw_samples(seed: int, samples: int, tail: float, columns: int = COLUMNS) -> list[Tensor]:
    """Return samples [tokens, columns] whose columns and tokens differ widely in size, with zeros as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(columns, generator=generator).mul(tail).exp()
    found = []
    for _ in range(samples):
        rows = torch.randn(1 + int(torch.randint(9, (1,), generator=generator)), columns, generator=generator)
        rows *= spread * torch.randn(len(rows), 1, generator=generator).mul(tail).exp()
        found.append(rows * (torch.rand(rows.shape, generator=generator) < 0.8))
    return found


def finished(parts: list[list[Tensor]], need: StatisticsNeed, first: Tensor | None = None) -> LayerStatistics:
    """Sum in several accumulators, then add these up; they know sizes from the first sample, if one is given."""
    accumulators = []
    for part in parts:
        accumulator = InputAccumulator(need, None if first is None else column_exponents(first))
        for rows in part:
            accumulator.add(rows)
        accumulators.append(accumulator)
    start = next(accumulator for accumulator in accumulators if accumulator.sums)
    for other in accumulators:
        if other is not start and other.sums:
            start.tokens += other.tokens
            for mine, theirs in zip(start.sums, other.sums, strict=True):
                mine.add_(theirs)
    found = start.finish()
    assert found is not None
    return found


def same_bits(found: LayerStatistics, expected: LayerStatistics) -> bool:
    one, other = ([each.second_moment, each.hessian] for each in (found, expected))
    pairs = [(mine, theirs) for mine, theirs in zip(one, other, strict=True) if mine is not None]
    return found.tokens == expected.tokens and all(torch.equal(mine, theirs) for mine, theirs in pairs)


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.floats(0, 2),
    st.sampled_from(NEEDS),
    st.randoms(use_true_random=False),
)
def test_any_way_to_deal_out_samples_and_any_order_give_the_same_bits(
    seed: int, dealt: list[int], tail: float, need: StatisticsNeed, order: object
) -> None:
    samples = draw_samples(seed, len(dealt), tail)
    parts: list[list[Tensor]] = [[] for _ in range(5)]
    for sample, rank in zip(samples, dealt, strict=True):
        parts[rank].append(sample)
    for part in parts:
        order.shuffle(part)
    assert same_bits(finished(parts, need, samples[0]), finished([samples], need, samples[0]))


@given(st.integers(0, 10_000), st.integers(1, 30), st.floats(0, 2))
def test_without_known_sizes_a_hessian_is_the_sum_of_float32_products_rounded_once(
    seed: int, count: int, tail: float
) -> None:
    samples = draw_samples(seed, count, tail)
    found = finished([samples], StatisticsNeed.HESSIAN).hessian
    products = torch.stack([rows.T @ rows for rows in samples]).double()  # [samples, in, in]
    tokens = sum(len(rows) for rows in samples)
    assert found is not None
    assert torch.equal(found, found.T)
    for row in range(COLUMNS):
        exact = [2 * math.fsum(products[:, row, column].tolist()) / tokens for column in range(row, COLUMNS)]
        assert torch.equal(found[row, row:], torch.tensor(exact, dtype=torch.float64).float())


@given(st.integers(0, 10_000), st.integers(1, 30), st.floats(0, 2), st.floats(-30, 30), st.sampled_from(NEEDS))
def test_statistics_are_as_near_to_the_truth_as_float32_allows(
    seed: int, count: int, tail: float, size: float, need: StatisticsNeed
) -> None:
    samples = [rows * 2.0**size for rows in draw_samples(seed, count, tail)]
    found = finished([samples], need, samples[0])
    rows = torch.cat(samples).double()
    exact = 2 * rows.T @ rows / len(rows)
    norms = exact.diagonal().sqrt()
    torch.testing.assert_close(found.second_moment.double(), exact.diagonal() / 2, rtol=1e-6, atol=1e-37)
    if need is StatisticsNeed.HESSIAN:
        assert found.hessian is not None
        error = (found.hessian.double() - exact).abs()
        assert bool((error <= 1e-6 * norms * norms[:, None] + 1e-37).all())


@pytest.mark.parametrize("need", NEEDS)
def test_hessians_wider_than_a_strip_are_summed_in_the_same_way(need: StatisticsNeed) -> None:
    samples = draw_samples(3, 24, 1.0, columns=300)
    expected = finished([samples], need, samples[0])
    for cut in (1, 7, 23):
        assert same_bits(finished([samples[cut:], samples[:cut]], need, samples[0]), expected)
    rows = torch.cat(samples).double()
    exact = 2 * rows.T @ rows / len(rows)
    torch.testing.assert_close(expected.second_moment.double(), exact.diagonal() / 2, rtol=1e-6, atol=0.0)
    if expected.hessian is not None:
        norms = exact.diagonal().sqrt()
        assert bool(((expected.hessian.double() - exact).abs() <= 1e-6 * norms * norms[:, None]).all())
        assert torch.equal(expected.hessian, expected.hessian.T)


def test_the_last_bits_survive_sums_that_float32_would_have_lost() -> None:
    first = torch.full((1, 1), 4096.0)
    accumulator = InputAccumulator(StatisticsNeed.SECOND_MOMENT, column_exponents(first))
    for rows in [first, *([torch.ones(1, 1)] * 4096)]:
        accumulator.add(rows)
    found = accumulator.finish()
    assert found is not None
    assert float(found.second_moment) * 4097 == pytest.approx(4096.0**2 + 4096, rel=1e-7)


def test_sizes_are_powers_of_two_just_above_the_norms() -> None:
    first = torch.tensor([[3.0, 0.0, 1e-20, torch.inf, 0.6], [4.0, 0.0, 0.0, 1.0, 0.8]])
    assert column_exponents(first).tolist() == [3, -60, -60, -60, 1]
    assert column_exponents(first[:, [0, 1, 4]]).tolist() == [3, -7, 1]
    assert column_exponents(torch.zeros(2, 2)).tolist() == [-60, -60]
    exponents = torch.arange(-126, 128)
    assert power_of_two(exponents).tolist() == [2.0**exponent for exponent in exponents.tolist()]


class Routed(nn.Module):
    """Query and key share an input; each expert sees the samples whose first number asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(COLUMNS, COLUMNS, bias=False) for _ in range(3))
        self.experts = nn.ModuleList(nn.Linear(COLUMNS, COLUMNS) for _ in range(3))
        generator = torch.Generator().manual_seed(1)  # Threads that play processes share the global one.
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.o(self.q(x) + self.k(x))
        return self.experts[int(x[0, 0, 0] > 0)](hidden)


ROUTED = ["q", "k", "o", "experts.0", "experts.1", "experts.2"]


def observed(
    samples: list[Tensor], need: StatisticsNeed = StatisticsNeed.HESSIAN, ranks: ThreadRanks | None = None
) -> BlockObserver:
    """Watch every sample, or, as one of several processes, the first of all and then its own."""
    model = Routed()
    observer = BlockObserver(model, [(target(name), need) for name in ROUTED])

    def watch(part: range) -> None:
        for number in part:
            with observer.watching():
                model(samples[number])

    if ranks is None:
        watch(range(len(samples)))
        return observer
    own = own_samples(len(samples), ranks.rank, ranks.size)
    watch(range(own.start, min(own.stop, 1)))
    observer.learn(ranks)
    watch(range(max(own.start, 1), own.stop))
    return observer


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("need", NEEDS)
def test_observers_that_saw_a_part_each_know_what_one_observer_knows(size: int, need: StatisticsNeed) -> None:
    samples = [torch.randn(1, 6, COLUMNS, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    for number, sample in enumerate(samples):
        sample[0, 0, 0] = 1.0 if number == 4 else -1.0  # Only the last sample meets the second expert.
    alone = observed(samples, need)
    readers = {name: number % size for number, name in enumerate(ROUTED)}

    def work(ranks: ThreadRanks) -> dict[str, LayerStatistics | None]:
        observer = observed(samples, need, ranks)
        observer.combine(ranks, readers)
        assert [observer.tokens(target(name)) for name in ROUTED] == [30, 30, 30, 24, 6, 0]
        return {name: observer.statistics(target(name)) for name in ROUTED if readers[name] == ranks.rank}

    read = {name: found for told in in_ranks(size, work) for name, found in told.items()}
    assert set(read) == set(ROUTED)
    for name, found in read.items():
        expected = alone.statistics(target(name))
        if name == "experts.2":
            assert found is None and expected is None
        else:
            assert found is not None and expected is not None and same_bits(found, expected)


def test_numbers_that_are_not_finite_stay_where_they_came_in() -> None:
    def work(ranks: ThreadRanks) -> LayerStatistics | None:
        samples = [torch.ones(1, 4, COLUMNS) for _ in range(4)]
        samples[3][0, 1, 3] = torch.inf
        observer = observed(samples, ranks=ranks)
        observer.combine(ranks, dict.fromkeys(ROUTED, 0))
        return observer.statistics(target("q")) if ranks.rank == 0 else None

    found = in_ranks(2, work)[0]
    assert torch.isfinite(found.second_moment).tolist() == [True, True, True, False, True]


def test_a_sample_that_calls_other_layers_than_the_first_one_is_seen_whole() -> None:
    samples = [torch.ones(1, 4, COLUMNS), -torch.ones(1, 4, COLUMNS), torch.ones(1, 4, COLUMNS)]
    observer = observed(samples)
    assert [observer.tokens(target(name)) for name in ROUTED] == [12, 12, 12, 4, 8, 0]
