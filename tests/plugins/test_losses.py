"""The losses against plain formulas, one token and one word at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from distillation.batches import agreeing, loss_named, random_batch
from pydantic import ValidationError
from torch import Tensor

from lowbit import DistillationBatch, DistillationLoss, TokenLoss

TEMPERATURES = [0.5, 1.0, 3.0]


def probabilities(logits: Tensor, temperature: float) -> list[list[float]]:
    """Return the softmax of each row, written out."""
    rows = []
    for row in logits.tolist():
        powers = [math.exp(value / temperature) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def divergence(first: list[float], second: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True))


def values_of(loss: DistillationLoss, batch: DistillationBatch) -> Tensor:
    term = loss(batch)
    assert isinstance(term, TokenLoss)
    assert term.weight is None
    assert term.coefficient == 1
    return term.value


def assert_values(loss: DistillationLoss, batch: DistillationBatch, expected: list[float]) -> None:
    values = values_of(loss, batch)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def assert_gradient_in_logits(loss: DistillationLoss, batch: DistillationBatch) -> None:
    def of_logits(logits: Tensor) -> Tensor:
        return values_of(loss, replace(batch, student_logits=logits))

    assert torch.autograd.gradcheck(of_logits, (batch.student_logits,))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric"])
def test_kl_is_the_divergence_times_the_squared_temperature(direction: str, temperature: float) -> None:
    batch = random_batch()
    share = {"forward": 1.0, "reverse": 0.0, "symmetric": 0.3}[direction]
    pairs = zip(
        probabilities(batch.teacher_logits, temperature), probabilities(batch.student_logits, temperature), strict=True
    )
    expected = [temperature**2 * (share * divergence(p, q) + (1 - share) * divergence(q, p)) for p, q in pairs]
    loss = loss_named("kl", direction=direction, temperature=temperature, forward_share=0.3)
    assert_values(loss, batch, expected)
    assert_gradient_in_logits(loss, batch)


@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric"])
def test_a_student_that_agrees_has_no_divergence_and_no_gradient(direction: str) -> None:
    batch = agreeing(random_batch())
    values = values_of(loss_named("kl", direction=direction), batch)
    assert values.tolist() == [0.0] * 7
    values.sum().backward()
    assert batch.student_logits.grad is not None
    assert float(batch.student_logits.grad.abs().max()) < 1e-15


def test_the_squared_temperature_keeps_the_size_of_the_gradient() -> None:
    """For hot temperatures, T^2 KL tends to half the variance of the logits' differences, whatever T is."""
    batch = random_batch()
    difference = (batch.teacher_logits - batch.student_logits).detach()
    limit = difference.var(-1, correction=0) / 2
    for temperature in (1e3, 1e4):
        values = values_of(loss_named("kl", temperature=temperature), batch)
        torch.testing.assert_close(values.detach(), limit, rtol=0.02, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_ce_is_the_cross_entropy_times_the_squared_temperature(temperature: float) -> None:
    batch = random_batch()
    pairs = zip(
        probabilities(batch.teacher_logits, temperature), probabilities(batch.student_logits, temperature), strict=True
    )
    expected = [-(temperature**2) * sum(a * math.log(b) for a, b in zip(p, q, strict=True)) for p, q in pairs]
    loss = loss_named("ce", temperature=temperature)
    assert_values(loss, batch, expected)
    assert_gradient_in_logits(loss, batch)


def test_ce_and_forward_kl_have_the_same_gradient() -> None:
    batch = random_batch()
    gradients = [
        torch.autograd.grad(values_of(loss_named(name, temperature=2.0), batch).sum(), batch.student_logits)[0]
        for name in ("ce", "kl")
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("blocks", ["all", "last"])
@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_mse_is_the_squared_difference_of_the_blocks_outputs(normalize: str, blocks: str) -> None:
    batch = random_batch()
    compared = list(zip(batch.student_hidden, batch.teacher_hidden, strict=True))[0 if blocks == "all" else -1 :]
    expected = []
    for token in range(7):
        squares = []
        for student, teacher in compared:
            s, t = student[token].tolist(), teacher[token].tolist()
            if normalize == "l2":
                s, t = [x / math.hypot(*s) for x in s], [x / math.hypot(*t) for x in t]
            square = sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
            squares.append(square if normalize == "l2" else square / len(s))
        expected.append(sum(squares) / len(squares))
    loss = loss_named("mse", normalize=normalize, blocks=blocks)
    assert_values(loss, batch, expected)

    def of_hidden(*hidden: Tensor) -> Tensor:
        return values_of(loss, replace(batch, student_hidden=hidden))

    assert torch.autograd.gradcheck(of_hidden, batch.student_hidden)


def test_normalised_states_ignore_their_length_and_reach_4_when_opposite() -> None:
    batch = random_batch()
    loss = loss_named("mse", normalize="l2")
    longer = replace(batch, student_hidden=tuple(1000 * state for state in batch.teacher_hidden))
    opposite = replace(batch, student_hidden=tuple(-state for state in batch.teacher_hidden))
    assert float(values_of(loss, longer).abs().max()) < 1e-12
    torch.testing.assert_close(values_of(loss, opposite), torch.full((7,), 4.0, dtype=torch.float64))


def test_states_of_zeros_have_finite_gradients_when_normalised() -> None:
    batch = random_batch()
    zeros = tuple(torch.zeros_like(state).requires_grad_() for state in batch.teacher_hidden)
    values_of(loss_named("mse", normalize="l2"), replace(batch, student_hidden=zeros)).sum().backward()
    assert all(state.grad is not None and bool(state.grad.isfinite().all()) for state in zeros)


def test_next_token_is_the_negative_log_probability_of_the_label() -> None:
    batch = random_batch()
    rows = zip(probabilities(batch.student_logits, 1.0), batch.labels.tolist(), strict=True)
    loss = loss_named("next-token")
    assert_values(loss, batch, [-math.log(row[label]) for row, label in rows])
    assert_gradient_in_logits(loss, batch)


@pytest.mark.parametrize("name", ["kl", "ce"])
def test_a_teacher_that_is_certain_gives_finite_values_and_gradients(name: str) -> None:
    batch = random_batch(dtype=torch.float32)
    certain = replace(batch, teacher_logits=1e4 * torch.eye(11)[:7])
    values = values_of(loss_named(name), certain)
    values.sum().backward()
    assert bool(values.isfinite().all())
    assert batch.student_logits.grad is not None
    assert bool(batch.student_logits.grad.isfinite().all())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kl", {"temperature": 0}),
        ("kl", {"direction": "backward"}),
        ("kl", {"forward_share": 1.5}),
        ("ce", {"temperature": -1}),
        ("mse", {"normalize": "l1"}),
        ("mse", {"blocks": "first"}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        loss_named(name, **options)
