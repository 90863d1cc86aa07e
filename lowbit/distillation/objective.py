"""What a student is trained on: several losses over all tokens, with the logits of a few tokens in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.contracts import DistillationBatch, DistillationLoss, TokenLoss
from lowbit.errors import LowbitError


@dataclass(frozen=True)
class Tokens:
    """The tokens of a micro-batch, as both models leave them before the output layer.

    Args:
        student: What enters the student's output layer, [tokens, hidden size], with gradient.
        teacher: The same of the teacher, without.
        labels: The token that follows each token, int64 [tokens].
        student_hidden: The output of each decoder block of the student, [tokens, hidden size], with gradient; may be
            empty if no loss needs it.
        teacher_hidden: The same of the teacher, without gradient.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    student_hidden: tuple[Tensor, ...] = ()
    teacher_hidden: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """The tensors that carry the student's gradient."""
        return (self.student, *self.student_hidden)

    def part(self, span: slice) -> Tokens:
        """Return some of the tokens, as views."""
        return Tokens(
            self.student[span],
            self.teacher[span],
            self.labels[span],
            tuple(hidden[span] for hidden in self.student_hidden),
            tuple(hidden[span] for hidden in self.teacher_hidden),
        )

    def as_leaves(self) -> Tokens:
        """Return the same tokens cut off from the student's graph, with gradients of their own."""
        student, *hidden = (tensor.detach().requires_grad_() for tensor in self.trained)
        return replace(self, student=student, student_hidden=tuple(hidden))


@dataclass(frozen=True)
class Measured:
    """What is known of a micro-batch before its backward pass.

    Args:
        sums: As `Objective.sums` returns them, float64 [terms, 2].
        terms: The terms with their graph, if all tokens fit one chunk.
    """

    sums: Tensor
    terms: Sequence[TokenLoss] | None


class Objective:
    """The sum of all losses' terms, each the weighted mean of its values over the tokens of an optimizer step.

    A term's sum of weights is known only when every token of the step was seen. So a step is `sums` over every
    micro-batch, added up over micro-batches and processes, and then `backward` with the sums of weights; with losses
    whose weights are all 1, the numbers of tokens do. Either way, logits exist for one chunk of tokens at a time: their
    gradient reaches the student as that of the hidden states.

    Args:
        losses: Each with its coefficient.
        head: Turns hidden states [tokens, hidden size] into logits [tokens, vocabulary].
        chunk_elements: Most logits of one model that are held at once; a chunk has at least one token.
        vocabulary: Columns of the logits.
    """

    def __init__(
        self,
        losses: Sequence[tuple[DistillationLoss, float]],
        head: Callable[[Tensor], Tensor],
        chunk_elements: int,
        vocabulary: int,
    ) -> None:
        self._losses = tuple(losses)
        self._head = head
        self._chunk_tokens = max(1, chunk_elements // vocabulary)
        # The coefficients of each loss's terms: known, and fixed, once the loss was first called.
        self._coefficients: dict[int, tuple[float, ...]] = {}
        self._uniform: bool | None = None

    @property
    def needs_hidden_states(self) -> bool:
        """Whether any loss compares the outputs of decoder blocks."""
        return any(loss.needs_hidden_states for loss, _ in self._losses)

    @property
    def terms(self) -> int:
        """How many terms the losses have; 0 before they were first called."""
        return sum(len(parts) for parts in self._coefficients.values())

    @property
    def uniform(self) -> bool:
        """Whether all terms weigh all tokens alike, so that sums of weights are numbers of tokens.

        Known, and fixed, once the losses were first called; `False` before.
        """
        return bool(self._uniform)

    def measure(self, tokens: Tokens) -> Measured:
        """Return the sums of `sums`, and, if the tokens fit one chunk, what spares `backward` to compute them again."""
        if len(tokens) > self._chunk_tokens:
            return Measured(self.sums(tokens), None)
        terms = self._terms(tokens)
        return Measured(_sums(terms), terms)

    @torch.no_grad()
    def sums(self, tokens: Tokens) -> Tensor:
        """Return, without gradient, the sum of weighted values and the sum of weights of each term, float64 [terms, 2].

        Raises:
            LowbitError: A loss broke its contract.
        """
        return torch.stack([_sums(self._terms(tokens.part(span))) for span in self._spans(tokens)]).sum(0)

    def backward(self, tokens: Tokens, normalisers: Tensor, measured: Measured | None = None) -> Tensor:
        """Add the objective's gradient to the student's parameters and return the same sums as `sums`.

        Args:
            tokens: Of one micro-batch; the student's graph is used up.
            normalisers: What each term is divided by, [terms]: its sum of weights over the whole step.
            measured: What `measure` returned for the same tokens, if it was called.

        Raises:
            LowbitError: A loss broke its contract, or a normaliser is not positive.
        """
        divisors: list[float] = normalisers.tolist()
        if len(tokens) <= self._chunk_tokens:
            return self._backward_chunk(tokens, divisors, None if measured is None else measured.terms)
        gradients = [torch.zeros_like(tensor) for tensor in tokens.trained]
        sums = []
        for span in self._spans(tokens):
            leaves = tokens.part(span).as_leaves()
            sums.append(self._backward_chunk(leaves, divisors))
            for gradient, leaf in zip(gradients, leaves.trained, strict=True):
                if leaf.grad is not None:
                    gradient[span] = leaf.grad
        _push(tokens.trained, gradients)
        return torch.stack(sums).sum(0)

    def value(self, sums: Tensor) -> float:
        """Return the objective, given sums [terms, 2] over every token that it is to be the mean of.

        Raises:
            LowbitError: Other sums than this objective's, or a sum of weights is not positive.
        """
        totals: list[tuple[float, float]] = sums.tolist()
        factors = self._factors([weights for _, weights in totals])
        return sum(factor * total for factor, (total, _) in zip(factors, totals, strict=True))

    def _spans(self, tokens: Tokens) -> Iterator[slice]:
        """Yield the tokens of each chunk; no tokens at all are one empty chunk."""
        for start in range(0, max(1, len(tokens)), self._chunk_tokens):
            yield slice(start, start + self._chunk_tokens)

    def _backward_chunk(
        self, chunk: Tokens, divisors: Sequence[float], known: Sequence[TokenLoss] | None = None
    ) -> Tensor:
        """Run the backward pass of one chunk's share of the objective, and return its sums."""
        terms = self._terms(chunk) if known is None else known
        factors = self._factors(divisors)
        parts = [factor * _weighted(term).sum() for factor, term in zip(factors, terms, strict=True)]
        torch.stack(parts).sum().backward()
        return _sums(terms)

    def _factors(self, divisors: Sequence[float]) -> list[float]:
        """Return each term's coefficient divided by its sum of weights."""
        named = [(self._losses[i][0].name, part) for i, parts in self._coefficients.items() for part in parts]
        if len(divisors) != len(named):
            raise LowbitError(f"the losses have {len(named)} terms, but sums for {len(divisors)} came")
        for (name, _), divisor in zip(named, divisors, strict=True):
            if divisor <= 0:
                raise LowbitError(
                    f"the weights of distillation loss {name!r} sum to {divisor:g}, and nothing can be divided by "
                    "that; a loss must give some token a positive weight"
                )
        return [coefficient / divisor for (_, coefficient), divisor in zip(named, divisors, strict=True)]

    def _terms(self, chunk: Tokens) -> list[TokenLoss]:
        """Return the terms of every loss, in order."""
        with torch.no_grad():
            teacher_logits = self._head(chunk.teacher).float()  # [tokens, vocabulary]
        student_logits = self._head(chunk.student).float()  # [tokens, vocabulary]
        batch = DistillationBatch(student_logits, teacher_logits, chunk.labels)
        with_hidden = replace(
            batch,
            student_hidden=tuple(hidden.float() for hidden in chunk.student_hidden),
            teacher_hidden=tuple(hidden.detach().float() for hidden in chunk.teacher_hidden),
        )
        terms: list[TokenLoss] = []
        for index, (loss, coefficient) in enumerate(self._losses):
            found = _evaluate(loss, with_hidden if loss.needs_hidden_states else batch)
            self._fix_coefficients(index, tuple(coefficient * term.coefficient for term in found))
            terms.extend(found)
        self._fix_uniform(all(term.weight is None for term in terms))
        return terms

    def _fix_uniform(self, uniform: bool) -> None:
        if self._uniform not in (None, uniform):
            raise LowbitError("a distillation loss returned weights for some tokens and none for others")
        self._uniform = uniform

    def _fix_coefficients(self, index: int, coefficients: tuple[float, ...]) -> None:
        known = self._coefficients.setdefault(index, coefficients)
        if coefficients != known:
            raise LowbitError(
                f"distillation loss {self._losses[index][0].name!r} returned {len(known)} terms with coefficients "
                f"{list(known)} before and {len(coefficients)} with {list(coefficients)} now; neither may depend on "
                "the batch"
            )


def _evaluate(loss: DistillationLoss, batch: DistillationBatch) -> tuple[TokenLoss, ...]:
    """Call a loss and return its terms, checked."""
    if loss.needs_hidden_states and not batch.student_hidden:
        raise LowbitError(f"distillation loss {loss.name!r} needs the outputs of the decoder blocks; none were given")
    result: object = loss(batch)
    terms = tuple(result) if isinstance(result, list | tuple) else (result,)
    if not terms or not all(isinstance(term, TokenLoss) for term in terms):
        raise LowbitError(
            f"distillation loss {loss.name!r} must return a TokenLoss or a list of them, not {_kind(result)}"
        )
    for term in terms:
        _check_shapes(loss, term, len(batch.labels))
        if batch.student_logits.requires_grad and not term.value.requires_grad:
            raise LowbitError(f"distillation loss {loss.name!r} returned values that do not depend on the student")
    return terms


def _kind(result: object) -> str:
    if not isinstance(result, list | tuple):
        return type(result).__name__
    parts = sorted({type(part).__name__ for part in result})
    return f"a {type(result).__name__} of {', '.join(parts) or 'nothing'}"


def _check_shapes(loss: DistillationLoss, term: TokenLoss, tokens: int) -> None:
    parts: dict[str, object] = {"values": term.value}
    if term.weight is not None:
        parts["weights"] = term.weight
    for what, part in parts.items():
        if not isinstance(part, Tensor) or tuple(part.shape) != (tokens,):
            came = f"a tensor {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise LowbitError(
                f"distillation loss {loss.name!r} must return {what} of shape [tokens], here [{tokens}], not {came}"
            )


def _weighted(term: TokenLoss) -> Tensor:
    return term.value if term.weight is None else term.value * term.weight.detach()


@torch.no_grad()
def _sums(terms: Sequence[TokenLoss]) -> Tensor:
    """Return the sum of weighted values and the sum of weights of each term, float64 [terms, 2]."""
    rows = []
    for term in terms:
        weight = torch.ones_like(term.value) if term.weight is None else term.weight
        rows.append(torch.stack([(term.value.double() * weight.double()).sum(), weight.double().sum()]))
    return torch.stack(rows)


def _push(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Run the backward pass from tensors whose gradients are known."""
    pairs = [pair for pair in zip(tensors, gradients, strict=True) if pair[0].requires_grad]
    torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
