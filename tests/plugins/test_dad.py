"""Deviation-Aware Distillation, our reconstruction, against its formula written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from distillation.batches import agreeing, loss_named, random_batch
from hypothesis import given
from hypothesis import strategies as st
from lowbit_dbllm import DeviationAwareDistillation
from pydantic import ValidationError
from torch import Tensor

from lowbit import DistillationBatch, DistillationLoss, TokenLoss


def terms_of(loss: DistillationLoss, batch: DistillationBatch) -> list[TokenLoss]:
    terms = loss(batch)
    assert isinstance(terms, list)
    return terms


def total(terms: Sequence[TokenLoss]) -> Tensor:
    """Return the loss as the trainer makes it: each term the weighted mean of its values."""
    parts = []
    for term in terms:
        weight = torch.ones_like(term.value) if term.weight is None else term.weight
        parts.append(term.coefficient * (weight * term.value).sum() / weight.sum())
    return torch.stack(parts).sum()


def expected_loss(
    batch: DistillationBatch, base: str, gammas: tuple[float, float], mixing: float, plain: float, unit: float = 1.0
) -> float:
    """Return plain * L_KD + mixing * L_DAD, the weights divided by the batch's mean weight; entropies in `unit`."""
    bases, weights = [], []
    for teacher, student in zip(batch.teacher_logits.tolist(), batch.student_logits.tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, teacher)) for x in teacher]
        q = [math.exp(x) / sum(map(math.exp, student)) for x in student]
        entropies = [-sum(x * math.log(x) for x in row) / unit for row in (p, q)]
        against = [1.0] * len(p) if base == "ce" else p
        bases.append(-sum(a * math.log(b / c) for a, b, c in zip(p, q, against, strict=True)))
        weights.append(entropies[0] ** gammas[0] * entropies[1] ** gammas[1])
    mean = sum(weights) / len(weights)
    weighted = sum(w / mean * b for w, b in zip(weights, bases, strict=True)) / len(bases)
    return plain * sum(bases) / len(bases) + mixing * weighted


@pytest.mark.parametrize("form", ["added", "replaced"])
@pytest.mark.parametrize("base", ["ce", "kl"])
@pytest.mark.parametrize("gammas", [(0.5, 0.5), (1.0, 0.0), (0.0, 2.0), (0.3, 0.7), (0.0, 0.0)])
@pytest.mark.parametrize("mixing", [0.1, 1.0])
def test_dad_is_its_formula(form: str, base: str, gammas: tuple[float, float], mixing: float) -> None:
    batch = random_batch()
    loss = loss_named("dad", form=form, base=base, teacher_gamma=gammas[0], student_gamma=gammas[1], mixing=mixing)
    coefficients = (mixing, 1.0) if form == "added" else (1.0, 0.0)
    expected = expected_loss(batch, base, gammas, *coefficients)
    assert total(terms_of(loss, batch)).item() == pytest.approx(expected, rel=1e-12)


def test_the_defaults_are_the_product_of_entropies_with_exponent_a_half_added_to_cross_entropy() -> None:
    batch = random_batch()
    expected = expected_loss(batch, "ce", (0.5, 0.5), 1.0, 1.0)
    terms = terms_of(DeviationAwareDistillation(), batch)
    assert [term.weight is None for term in terms] == [True, False]
    assert total(terms).item() == pytest.approx(expected, rel=1e-12)


def test_entropies_over_the_logarithm_of_the_vocabulary_give_the_same_loss() -> None:
    batch = random_batch()
    expected = expected_loss(batch, "ce", (0.5, 0.5), 1.0, 1.0, unit=math.log(11))
    assert total(terms_of(loss_named("dad"), batch)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("base", ["ce", "kl"])
def test_mixing_0_is_plain_distillation(base: str) -> None:
    batch = random_batch()
    [term] = terms_of(loss_named("dad", base=base, mixing=0), batch)
    plain = loss_named(base)(batch)
    assert isinstance(plain, TokenLoss)
    assert term.weight is None
    torch.testing.assert_close(term.value, plain.value, rtol=1e-14, atol=0)


def test_a_form_without_the_plain_term_ignores_mixing() -> None:
    batch = random_batch()
    losses = [total(terms_of(loss_named("dad", form="replaced", mixing=mixing), batch)) for mixing in (0.0, 5.0)]
    assert torch.equal(losses[0], losses[1])


def test_no_gradient_flows_through_the_weights() -> None:
    batch = random_batch()
    terms = terms_of(loss_named("dad", base="kl"), batch)
    weight = terms[1].weight
    assert weight is not None
    assert not weight.requires_grad
    found = torch.autograd.grad(total(terms), batch.student_logits)[0]

    def with_fixed_weights(logits: Tensor) -> Tensor:
        term = loss_named("kl")(replace(batch, student_logits=logits))
        assert isinstance(term, TokenLoss)
        return term.value.mean() + (weight * term.value).sum() / weight.sum()

    expected = torch.autograd.grad(with_fixed_weights(batch.student_logits), batch.student_logits)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(with_fixed_weights, (batch.student_logits,))


def test_ambiguous_tokens_weigh_more() -> None:
    batch = random_batch()
    sharpness = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.0], dtype=torch.float64)[:, None]
    ordered = replace(batch, teacher_logits=batch.teacher_logits[:1] * sharpness)
    [_, term] = terms_of(loss_named("dad", student_gamma=0), ordered)
    assert term.weight is not None
    assert bool((term.weight.diff() > 0).all())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("base", ["ce", "kl"])
def test_models_that_are_certain_of_everything_give_a_finite_loss_and_gradient(base: str, gamma: float) -> None:
    certain = 1e4 * torch.eye(11)[:7]
    batch = agreeing(replace(random_batch(dtype=torch.float32), teacher_logits=certain))
    loss = total(terms_of(loss_named("dad", base=base, teacher_gamma=gamma, student_gamma=gamma), batch))
    loss.backward()
    assert loss.item() == 0
    assert batch.student_logits.grad is not None
    assert bool(batch.student_logits.grad.isfinite().all())


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0, 1e4))
def test_weights_are_positive_and_finite(teacher_gamma: float, student_gamma: float, sharpness: float) -> None:
    batch = random_batch(dtype=torch.float32)
    sharper = replace(batch, teacher_logits=batch.teacher_logits * sharpness)
    [term] = terms_of(
        loss_named("dad", form="replaced", teacher_gamma=teacher_gamma, student_gamma=student_gamma), sharper
    )
    assert term.weight is not None
    assert bool((term.weight > 0).all())
    assert bool(term.weight.isfinite().all())


def test_a_student_that_agrees_has_no_divergence() -> None:
    batch = agreeing(random_batch())
    assert total(terms_of(loss_named("dad", base="kl"), batch)).item() == 0


def test_the_options_say_that_this_is_a_reconstruction() -> None:
    assert "our reconstruction" in (DeviationAwareDistillation.__doc__ or "")
    fields = DeviationAwareDistillation.Config.model_fields.values()
    assert all("our reconstruction" in (field.description or "") for field in fields)


@pytest.mark.parametrize(
    "options", [{"teacher_gamma": -1}, {"student_gamma": 4}, {"mixing": -0.1}, {"base": "mse"}, {"form": "both"}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        loss_named("dad", **options)
