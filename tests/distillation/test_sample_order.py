"""Which sequences a step takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowbit.distillation.sample_order import SampleOrder


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_each_epoch_is_a_permutation(samples: int, batch_size: int, seed: int) -> None:
    order = SampleOrder(samples, batch_size, seed)
    stream = [position for step in range(3 * samples) for position in order.batch(step)]
    for epoch in range(3):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


@given(st.integers(2, 40), st.integers(1, 12), st.lists(st.integers(0, 60), min_size=1))
def test_a_batch_follows_from_its_step_alone(samples: int, batch_size: int, steps: list[int]) -> None:
    visited = SampleOrder(samples, batch_size, 3)
    for step in steps:
        assert visited.batch(step) == SampleOrder(samples, batch_size, 3).batch(step)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [SampleOrder(30, 30, seed).batch(step) for seed in range(3) for step in range(3)]
    assert len({tuple(order) for order in orders}) == 9
