"""The learning curve and what follows from it."""

from __future__ import annotations

import json

import pytest

from lowbit.distillation.curve import Curve


def curve_of(*held_out: float) -> Curve:
    curve = Curve()
    for step, loss in enumerate(held_out):
        curve.look(step, loss)
    return curve


def test_a_look_says_whether_it_is_the_best_so_far() -> None:
    curve = Curve()
    assert [curve.look(step, loss) for step, loss in enumerate([3.0, 3.0, 2.0, 2.5, 1.0])] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert (curve.best_step, curve.best_loss) == (4, 1.0)


@pytest.mark.parametrize(
    ("held_out", "patience", "exhausted"),
    [
        ((3, 2, 1), 1, False),
        ((1, 2), 1, True),
        ((1, 2, 3), 3, False),
        ((1, 2, 3, 4), 3, True),
        ((5, 1, 2, 0.5, 2), 2, False),
        ((1, 2, 3, 4), None, False),
    ],
)
def test_patience_counts_looks_since_the_best(held_out: tuple[float, ...], patience: int, exhausted: bool) -> None:
    assert curve_of(*held_out).exhausted(patience) is exhausted


def test_a_curve_comes_back_from_json_exactly() -> None:
    curve = Curve([0.1, 1 / 3], [(0, 2 / 3), (2, 1e-17)])
    assert Curve.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve
