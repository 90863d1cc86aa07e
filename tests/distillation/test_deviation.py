"""Deviation of a student from its teacher in chunks, against plain formulas over all tokens at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import VOCABULARY, ModelFolder, load_model
from torch import Tensor

from lowbit import DistillationBatch, LowbitError
from lowbit.distillation.deviation import PARTS, logit_chunks, measure_deviation, vocabulary_parts
from lowbit.distillation.student import Body, Head

WORDS = 31


def random_logits(tokens: int, seed: int = 0) -> DistillationBatch:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(tokens, WORDS, generator=generator) * torch.linspace(0.2, 4, tokens)[:, None]
    student = teacher + 0.7 * torch.randn(tokens, WORDS, generator=generator)
    return DistillationBatch(student, teacher, torch.randint(WORDS, (tokens,), generator=generator))


def random_parts(seed: int = 0) -> Tensor:
    return torch.randint(3, (WORDS,), generator=torch.Generator().manual_seed(seed))


def in_chunks(batch: DistillationBatch, size: int) -> Iterator[DistillationBatch]:
    tensors = (batch.student_logits, batch.teacher_logits, batch.labels)
    for student, teacher, labels in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        yield DistillationBatch(student, teacher, labels)


def probabilities(logits: Tensor) -> np.ndarray:
    shifted = np.exp(logits.double().numpy() - logits.double().numpy().max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [1, 7, 200])
def test_bins_hold_the_plain_means_of_tokens_sorted_by_the_teachers_entropy(size: int) -> None:
    batch = random_logits(103)
    p, q = probabilities(batch.teacher_logits), probabilities(batch.student_logits)
    entropy, student_entropy = -(p * np.log(p)).sum(1), -(q * np.log(q)).sum(1)
    divergence, differs = (p * np.log(p / q)).sum(1), p.argmax(1) != q.argmax(1)
    found = measure_deviation(in_chunks(batch, size), random_parts())
    assert found.tokens == 103
    assert [row.tokens for row in found.by_entropy] == [11] * 3 + [10] * 7
    for row, chosen in zip(found.by_entropy, np.array_split(np.argsort(entropy), 10), strict=True):
        assert row.teacher_entropy == pytest.approx(entropy[chosen].mean(), rel=1e-5)
        assert row.student_entropy == pytest.approx(student_entropy[chosen].mean(), rel=1e-5)
        assert row.kl_divergence == pytest.approx(divergence[chosen].mean(), rel=1e-4)
        assert row.disagreement == differs[chosen].mean()


@pytest.mark.parametrize("size", [1, 7, 200])
def test_parts_hold_plain_shares_of_labels_probability_and_predictions(size: int) -> None:
    batch, parts = random_logits(50), random_parts()
    p, q = probabilities(batch.teacher_logits), probabilities(batch.student_logits)
    found = measure_deviation(in_chunks(batch, size), parts)
    for index, row in enumerate(found.by_frequency):
        inside = (parts == index).numpy()
        assert row.name == PARTS[index]
        assert row.vocabulary == inside.sum()
        assert row.labels == pytest.approx(inside[batch.labels.numpy()].mean())
        assert row.teacher_probability == pytest.approx(p[:, inside].sum(1).mean(), rel=1e-5)
        assert row.student_probability == pytest.approx(q[:, inside].sum(1).mean(), rel=1e-5)
        assert row.teacher_predictions == pytest.approx(inside[p.argmax(1)].mean())
        assert row.student_predictions == pytest.approx(inside[q.argmax(1)].mean())


def test_a_student_that_agrees_deviates_nowhere() -> None:
    batch = random_logits(40)
    found = measure_deviation(
        [DistillationBatch(batch.teacher_logits, batch.teacher_logits, batch.labels)], random_parts()
    )
    assert all(row.kl_divergence == 0 and row.disagreement == 0 for row in found.by_entropy)
    assert all(row.teacher_probability == row.student_probability for row in found.by_frequency)


def test_words_that_are_ruled_out_count_nothing() -> None:
    batch = random_logits(12)
    for logits in (batch.teacher_logits, batch.student_logits):
        logits[:, 3] = -torch.inf
    found = measure_deviation([batch], random_parts())
    assert all(np.isfinite([row.teacher_entropy, row.kl_divergence]).all() for row in found.by_entropy)


def test_fewer_tokens_than_bins_make_fewer_bins_and_none_is_an_error() -> None:
    assert [row.tokens for row in measure_deviation([random_logits(3)], random_parts()).by_entropy] == [1, 1, 1]
    with pytest.raises(LowbitError, match="no tokens"):
        measure_deviation([], random_parts())


def test_the_record_is_plain_json() -> None:
    record = measure_deviation([random_logits(20)], random_parts()).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert [row["name"] for row in record["by_frequency"]] == list(PARTS)


def test_the_head_is_the_smallest_set_that_makes_half_of_the_labels() -> None:
    labels = torch.tensor([5] * 50 + [2] * 30 + [7] * 10 + [1] * 10)
    assert vocabulary_parts(labels, 9).tolist() == [2, 1, 1, 2, 2, 0, 2, 2, 2]  # of 1 and 7 the lower comes first
    assert vocabulary_parts(labels[1:], 9)[5] == 0
    assert vocabulary_parts(labels[2:], 9)[2] == 0


@given(st.lists(st.integers(0, 11), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_head_and_middle_reach_their_shares_and_need_every_member(labels: list[int]) -> None:
    parts = vocabulary_parts(torch.tensor(labels), 12).tolist()
    counts = {word: labels.count(word) for word in range(12)}
    for last, percent in ((0, 50), (1, 90)):
        members = [counts[word] for word in range(12) if parts[word] <= last]
        assert 100 * sum(members) >= percent * len(labels)
        assert 100 * (sum(members) - min(members)) < percent * len(labels)
        assert min(members) >= max((counts[word] for word in range(12) if parts[word] > last), default=0)


@pytest.mark.parametrize(("samples", "chunk_tokens", "largest"), [(1, 5, 5), (2, 1000, 26), (8, 1000, 39)])
def test_logits_in_chunks_are_those_of_the_whole_models(
    parent: ModelFolder, samples: int, chunk_tokens: int, largest: int
) -> None:
    teacher, student = load_model(parent("llama")), load_model(parent("llama"))
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(1.1)
        tokens = torch.randint(3, VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(0))
        head = teacher.get_output_embeddings()
        expected = [head(model.model(tokens).last_hidden_state)[:, :-1].flatten(0, 1) for model in (student, teacher)]
        torch.testing.assert_close(expected[1], teacher(input_ids=tokens).logits[:, :-1].flatten(0, 1))
    chunks = list(logit_chunks(Body(student), Body(teacher), Head(teacher), tokens, samples, chunk_tokens, nullcontext))
    assert max(len(chunk.labels) for chunk in chunks) == largest
    torch.testing.assert_close(torch.cat([chunk.teacher_logits for chunk in chunks]), expected[1])
    torch.testing.assert_close(torch.cat([chunk.student_logits for chunk in chunks]), expected[0])
    assert not torch.allclose(expected[0], expected[1])
    assert torch.equal(torch.cat([chunk.labels for chunk in chunks]), tokens[:, 1:].flatten())
