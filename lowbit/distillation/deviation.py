"""Where a student deviates from its teacher: by the teacher's entropy, and by how frequent tokens are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.contracts import DistillationBatch
from lowbit.distillation.remembered_teacher import RememberedTeacher
from lowbit.distillation.student import Body
from lowbit.errors import LowbitError

BINS = 10
PARTS = ("head", "middle", "tail")


@dataclass(frozen=True)
class EntropyBin:
    """Tokens of similar ambiguity.

    Args:
        tokens: How many.
        teacher_entropy: Mean entropy of the teacher's predictions, in nats.
        student_entropy: Mean entropy of the student's.
        kl_divergence: Mean KL(teacher || student), in nats.
        disagreement: Share of tokens whose most probable continuation differs.
    """

    tokens: int
    teacher_entropy: float
    student_entropy: float
    kl_divergence: float
    disagreement: float


@dataclass(frozen=True)
class VocabularyPart:
    """What is predicted out of one part of the vocabulary.

    Args:
        name: `head`, `middle` or `tail`.
        vocabulary: Token ids in it.
        labels: Share of the labels that are in it.
        teacher_probability: Share of probability mass that the teacher gives to it.
        student_probability: The same of the student.
        teacher_predictions: Share of tokens whose most probable continuation, to the teacher, is in it.
        student_predictions: The same of the student.
    """

    name: str
    vocabulary: int
    labels: float
    teacher_probability: float
    student_probability: float
    teacher_predictions: float
    student_predictions: float


@dataclass(frozen=True)
class Deviation:
    """How a student's predictions deviate from its teacher's.

    Args:
        tokens: Tokens that were looked at.
        by_entropy: Bins of equal size, from the tokens that the teacher is surest of to the most ambiguous.
        by_frequency: Head, middle and tail of the vocabulary.
    """

    tokens: int
    by_entropy: tuple[EntropyBin, ...]
    by_frequency: tuple[VocabularyPart, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        lists = {"by_entropy": [asdict(row) for row in self.by_entropy]}
        return {"tokens": self.tokens, **lists, "by_frequency": [asdict(row) for row in self.by_frequency]}


def vocabulary_parts(labels: Tensor, vocabulary: int) -> Tensor:
    """Split a vocabulary by frequency.

    The head is the smallest set of most frequent token ids that make up 50 % of the labels, head and middle together
    are that for 90 %, the tail is the rest. Of equally frequent ids the lower comes first.

    Args:
        labels: int64, any shape.
        vocabulary: Number of token ids.

    Returns:
        0 for head, 1 for middle, 2 for tail, int64 [vocabulary].
    """
    counts = torch.bincount(labels.flatten(), minlength=vocabulary)  # [vocabulary]
    order = torch.argsort(counts, descending=True, stable=True)
    before = counts[order].cumsum(0) - counts[order]  # labels that more frequent ids make up
    parts = torch.empty_like(counts)
    parts[order] = (2 * before >= labels.numel()).long() + (10 * before >= 9 * labels.numel()).long()
    return parts


@torch.no_grad()
def logit_chunks(
    student: Body,
    teacher: Body | RememberedTeacher,
    head: Callable[[Tensor], Tensor],
    tokens: Tensor,
    samples: int,
    chunk_tokens: int,
    context: Callable[[], AbstractContextManager[Any]],
) -> Iterator[DistillationBatch]:
    """Run both models on a few sequences at a time and yield their logits, float32, for a few tokens at a time.

    Args:
        student: The student.
        teacher: The teacher.
        head: Turns hidden states into logits.
        tokens: int64 [samples, length], where the models are; the last token of each sequence is a label only.
        samples: Most sequences that are run at once.
        chunk_tokens: Most tokens whose logits are held at once.
        context: Makes the context that the models run in.
    """
    for batch in tokens.split(samples):
        with context():
            hidden = [body(batch)[0][:, :-1].flatten(0, 1) for body in (student, teacher)]  # [tokens, hidden size]
        labels = batch[:, 1:].flatten()  # [tokens]
        for start in range(0, len(labels), chunk_tokens):
            span = slice(start, start + chunk_tokens)
            student_logits, teacher_logits = (head(state[span]).float() for state in hidden)
            yield DistillationBatch(student_logits, teacher_logits, labels[span])


@torch.no_grad()
def measure_deviation(chunks: Iterable[DistillationBatch], parts: Tensor) -> Deviation:
    """Compare the predictions of student and teacher.

    Args:
        chunks: Logits [tokens, vocabulary] and labels [tokens], any number of tokens at a time.
        parts: What `vocabulary_parts` returned.

    Raises:
        LowbitError: There are no tokens.
    """
    of_tokens: list[Tensor] = []
    of_parts = torch.zeros(5, len(PARTS), dtype=torch.float64)
    for chunk in chunks:
        log_teacher, log_student = chunk.teacher_logits.log_softmax(-1), chunk.student_logits.log_softmax(-1)
        of_tokens.append(_token_numbers(log_teacher, log_student))
        of_parts += _part_sums(log_teacher.exp(), log_student.exp(), chunk.labels, parts.to(chunk.labels.device))
    if not of_tokens:
        raise LowbitError("there are no tokens to compare student and teacher on; sequences need two tokens or more")
    numbers = torch.cat(of_tokens)  # [tokens, 4]
    shares: list[list[float]] = (of_parts / len(numbers)).T.tolist()
    sizes: list[int] = torch.bincount(parts, minlength=len(PARTS)).tolist()
    return Deviation(
        tokens=len(numbers),
        by_entropy=_bins(numbers),
        by_frequency=tuple(VocabularyPart(name, sizes[i], *shares[i]) for i, name in enumerate(PARTS)),
    )


def _token_numbers(log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """Return the entropies of teacher and student, KL and disagreement of each token, float64 [tokens, 4]."""
    teacher = log_teacher.exp()
    divergence = torch.where(teacher > 0, teacher * (log_teacher - log_student), 0.0).sum(-1)
    columns = (
        torch.special.entr(teacher).sum(-1),
        torch.special.entr(log_student.exp()).sum(-1),
        divergence,
        log_teacher.argmax(-1) != log_student.argmax(-1),
    )
    return torch.stack([column.double() for column in columns], dim=1).cpu()


def _part_sums(teacher: Tensor, student: Tensor, labels: Tensor, parts: Tensor) -> Tensor:
    """Return labels, probabilities and predictions by part, float64 [5, parts], as `VocabularyPart` orders them."""
    rows = [_counted(parts[labels])]
    for probabilities in (teacher, student):
        mass = probabilities.sum(0, dtype=torch.float64)  # [vocabulary]
        rows.append(torch.zeros(len(PARTS), dtype=torch.float64, device=mass.device).index_add(0, parts, mass))
    rows += [_counted(parts[probabilities.argmax(-1)]) for probabilities in (teacher, student)]
    return torch.stack(rows).cpu()


def _counted(found: Tensor) -> Tensor:
    """Return how often each part was found, float64 [parts]."""
    return torch.bincount(found, minlength=len(PARTS)).double()


def _bins(numbers: Tensor) -> tuple[EntropyBin, ...]:
    """Sort tokens by the teacher's entropy into bins of equal size, to within one token."""
    ordered = numbers[torch.argsort(numbers[:, 0], stable=True)]
    found = ordered.tensor_split(min(BINS, len(ordered)))
    return tuple(EntropyBin(len(rows), *rows.mean(0).tolist()) for rows in found)
