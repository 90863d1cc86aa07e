"""What every registered distillation loss must hold to, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from distillation.batches import agreeing, loss_named, random_batch
from torch import Tensor

from lowbit import DistillationBatch, DistillationLoss, TokenLoss
from lowbit.registry import registry

LOSSES = sorted(registry().table("distillation loss"))

each_loss = pytest.mark.parametrize("name", LOSSES)


def terms_of(loss: DistillationLoss, batch: DistillationBatch) -> list[TokenLoss]:
    terms = loss(batch)
    return list(terms) if isinstance(terms, Sequence) else [terms]


def tensors_of(batch: DistillationBatch) -> list[Tensor]:
    return [batch.student_logits, batch.teacher_logits, batch.labels, *batch.student_hidden, *batch.teacher_hidden]


def test_the_losses_of_the_box_are_registered() -> None:
    assert {"ce", "dad", "kl", "mse", "next-token"} <= set(LOSSES)


@each_loss
@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_are_finite_one_a_token_and_of_the_logits_dtype(name: str, tokens: int, dtype: torch.dtype) -> None:
    for term in terms_of(loss_named(name), random_batch(tokens, dtype=dtype)):
        assert term.value.shape == (tokens,)
        assert term.value.dtype == dtype
        assert bool(term.value.isfinite().all())
        assert term.coefficient > 0
        if term.weight is not None:
            assert term.weight.shape == (tokens,)
            assert not term.weight.requires_grad
            assert bool((term.weight > 0).all())


@each_loss
def test_every_term_has_a_gradient_in_what_the_loss_compares(name: str) -> None:
    loss = loss_named(name)
    batch = random_batch()
    compared = batch.student_hidden if loss.needs_hidden_states else (batch.student_logits,)
    for term in terms_of(loss, batch):
        for gradient in torch.autograd.grad(term.value.sum(), compared, retain_graph=True):
            assert bool(gradient.isfinite().all())
            assert bool(gradient.abs().sum(-1).gt(0).all())


@each_loss
def test_a_loss_that_needs_no_hidden_states_does_without(name: str) -> None:
    loss = loss_named(name)
    if not loss.needs_hidden_states:
        for term in terms_of(loss, random_batch(blocks=0)):
            assert bool(term.value.isfinite().all())


@each_loss
def test_tokens_do_not_see_each_other(name: str) -> None:
    loss = loss_named(name)
    batch = random_batch(tokens=6)
    last = DistillationBatch(
        batch.student_logits[4:],
        batch.teacher_logits[4:],
        batch.labels[4:],
        tuple(state[4:] for state in batch.student_hidden),
        tuple(state[4:] for state in batch.teacher_hidden),
    )
    for whole, part in zip(terms_of(loss, batch), terms_of(loss, last), strict=True):
        torch.testing.assert_close(whole.value[4:], part.value, rtol=1e-12, atol=1e-14)
        assert whole.coefficient == part.coefficient


@each_loss
def test_inputs_and_random_state_are_left_alone(name: str) -> None:
    batch = random_batch()
    before = [tensor.detach().clone() for tensor in tensors_of(batch)]
    state = torch.get_rng_state()
    torch.stack([term.value.sum() for term in terms_of(loss_named(name), batch)]).sum().backward()
    assert all(torch.equal(old, new) for old, new in zip(before, tensors_of(batch), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.grad is None for tensor in (batch.teacher_logits, *batch.teacher_hidden))


@each_loss
def test_a_student_that_agrees_is_at_a_minimum_of_what_compares_it_with_the_teacher(name: str) -> None:
    if name == "next-token":
        pytest.skip("compares with the data, not with the teacher")
    batch = agreeing(random_batch())
    trained = (batch.student_logits, *batch.student_hidden)
    for term in terms_of(loss_named(name), batch):
        gradients = torch.autograd.grad(term.value.sum(), trained, retain_graph=True, allow_unused=True)
        for gradient in gradients:
            assert gradient is None or float(gradient.abs().max()) < 1e-12


@each_loss
def test_every_option_is_documented_and_has_a_default_that_validates(name: str) -> None:
    config = registry().distillation_loss(name).Config
    assert [key for key, field in config.model_fields.items() if not field.description] == []
    assert config.model_validate(config().model_dump(mode="json")) == config()


@each_loss
def test_losses_and_their_configs_say_what_they_are(name: str) -> None:
    loss = registry().distillation_loss(name)
    assert loss.__doc__
    assert loss.Config.__doc__
