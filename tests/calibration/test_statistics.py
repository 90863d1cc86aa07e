"""Streaming statistics equal plain sums; layers with the same input share them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit.calibration import BlockObserver
from lowbit.calibration.accumulator import InputAccumulator
from lowbit.contracts import StatisticsNeed
from lowbit.models import WeightTarget


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.never = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.q(x) + self.k(x))


def target(name: str) -> WeightTarget:
    return WeightTarget(name, name, "weight", None, False, 6, 6)


def observe(needs: dict[str, StatisticsNeed], samples: list[Tensor]) -> BlockObserver:
    torch.manual_seed(1)
    model = Attention()
    observer = BlockObserver(model, [(target(name), need) for name, need in needs.items()])
    for sample in samples:
        with observer.watching():
            model(sample)
    return observer


def test_hessian_is_twice_the_mean_outer_product() -> None:
    samples = [torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    found = observe({"q": StatisticsNeed.HESSIAN}, samples).statistics(target("q"))
    rows = torch.cat(samples).reshape(-1, 6).double()
    assert found is not None
    assert found.tokens == 35
    torch.testing.assert_close(found.hessian.double(), 2 * rows.T @ rows / 35, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.second_moment, found.hessian.diagonal() / 2)


def test_second_moment_alone_keeps_no_matrix() -> None:
    samples = [torch.randn(1, 4, 6)]
    found = observe({"q": StatisticsNeed.SECOND_MOMENT}, samples).statistics(target("q"))
    assert found is not None
    assert found.hessian is None
    torch.testing.assert_close(found.second_moment, samples[0][0].square().mean(0))


def test_layers_with_the_same_input_share_one_object() -> None:
    observer = observe(dict.fromkeys("qko", StatisticsNeed.HESSIAN), [torch.randn(1, 4, 6) for _ in range(3)])
    q, k, o = (observer.statistics(target(name)) for name in "qko")
    assert q is k
    assert o is not q
    assert q.tokens == o.tokens == 12


def test_layers_with_different_needs_share_nothing() -> None:
    observer = observe({"q": StatisticsNeed.HESSIAN, "k": StatisticsNeed.SECOND_MOMENT}, [torch.randn(1, 4, 6)])
    q, k = observer.statistics(target("q")), observer.statistics(target("k"))
    assert q.hessian is not None
    assert k.hessian is None
    torch.testing.assert_close(q.second_moment, k.second_moment)


def test_a_layer_that_no_token_reached_has_no_statistics() -> None:
    observer = observe({"never": StatisticsNeed.HESSIAN}, [torch.randn(1, 4, 6)])
    assert observer.statistics(target("never")) is None
    assert InputAccumulator(StatisticsNeed.HESSIAN).finish() is None


def test_a_target_without_needs_is_not_observed() -> None:
    observer = observe({"q": StatisticsNeed.NONE}, [torch.randn(1, 4, 6)])
    assert observer.idle
    assert observer.statistics(target("q")) is None


def test_low_precision_inputs_are_summed_in_float32() -> None:
    accumulator = InputAccumulator(StatisticsNeed.SECOND_MOMENT)
    accumulator.add(torch.full((1000, 2), 300.0, dtype=torch.float16))
    found = accumulator.finish()
    assert found is not None
    torch.testing.assert_close(found.second_moment, torch.full((2,), 90000.0))


def test_hooks_are_removed_even_if_the_block_fails() -> None:
    model = Attention()
    observer = BlockObserver(model, [(target("q"), StatisticsNeed.HESSIAN)])
    try:
        with observer.watching():
            raise KeyError
    except KeyError:
        pass
    assert not model.q._forward_pre_hooks


def test_later_samples_end_when_the_last_observed_layer_was_called() -> None:
    torch.manual_seed(1)
    model = Attention()
    finished: list[int] = []
    model.o.register_forward_hook(lambda *_: finished.append(len(finished)))
    observer = BlockObserver(model, [(target(name), StatisticsNeed.HESSIAN) for name in "qk"])
    for _ in range(4):
        with observer.watching():
            model(torch.randn(1, 5, 6))
    found = observer.statistics(target("q"))
    assert found is not None
    assert found.tokens == 20
    assert finished == [0]


def test_a_hessian_wider_than_a_strip_is_symmetric_and_whole() -> None:
    rows = torch.randn(50, 300, generator=torch.Generator().manual_seed(2))
    accumulator = InputAccumulator(StatisticsNeed.HESSIAN)
    for part in rows.split(20):
        accumulator.add(part)
    found = accumulator.finish()
    assert found is not None
    assert found.hessian is not None
    torch.testing.assert_close(found.hessian.double(), 2 * rows.double().T @ rows.double() / 50, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.hessian, found.hessian.T)
