"""The objective in chunks against the objective at once, its memory, and what it refuses."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from distillation.batches import loss_named
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowbit import DistillationBatch, DistillationLoss, LowbitError, TokenLoss
from lowbit.distillation.objective import Objective, Tokens

VOCABULARY, HIDDEN, TOKENS = 29, 6, 23
LOSSES: dict[str, list[tuple[str, dict[str, Any], float]]] = {
    "kl": [("kl", {}, 1.0)],
    "dad": [("dad", {}, 1.0)],
    "dad alone": [("dad", {"form": "replaced", "base": "kl", "mixing": 0.3}, 2.0)],
    "hidden states alone": [("mse", {"normalize": "l2"}, 1.0)],
    "all together": [
        ("dad", {"mixing": 0.7}, 0.5),
        ("mse", {}, 3.0),
        ("next-token", {}, 0.25),
        ("kl", {"direction": "reverse", "temperature": 2.0}, 1.5),
    ],
}


class Student(nn.Module):
    """Two small blocks whose outputs, and whose last state, losses compare; the output layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def tokens(self, seed: int = 0, count: int = TOKENS) -> Tokens:
        """Run random inputs; the teacher's states are random, too."""
        generator = torch.Generator().manual_seed(seed)
        state, teacher, first, second = (torch.randn(count, HIDDEN, generator=generator) for _ in range(4))
        hidden = []
        for block in self.blocks:
            state = state + torch.tanh(block(state))
            hidden.append(state)
        labels = torch.randint(VOCABULARY, (count,), generator=generator)
        return Tokens(state / state.norm(dim=-1, keepdim=True), teacher, labels, tuple(hidden), (first, second))

    def gradient(self) -> Tensor:
        """Return all gradients in one vector and clear them."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.blocks.parameters()]
        self.zero_grad()
        return torch.cat([part.flatten() for part in parts])


def objective_of(student: Student, name: str, chunk_tokens: int) -> Objective:
    losses = [(loss_named(loss, **options), coefficient) for loss, options, coefficient in LOSSES[name]]
    return Objective(losses, student.head, chunk_tokens * VOCABULARY, VOCABULARY)


def plain(student: Student, name: str, batches: Sequence[Tokens]) -> Tensor:
    """Return the objective over the tokens of all batches at once, with gradient."""
    joined = Tokens(
        torch.cat([tokens.student for tokens in batches]),
        torch.cat([tokens.teacher for tokens in batches]),
        torch.cat([tokens.labels for tokens in batches]),
        tuple(torch.cat(parts) for parts in zip(*(tokens.student_hidden for tokens in batches), strict=True)),
        tuple(torch.cat(parts) for parts in zip(*(tokens.teacher_hidden for tokens in batches), strict=True)),
    )
    logits, teacher_logits = student.head(joined.student), student.head(joined.teacher).detach()
    batch = DistillationBatch(logits, teacher_logits, joined.labels, joined.student_hidden, joined.teacher_hidden)
    total = torch.zeros(())
    for loss, options, coefficient in LOSSES[name]:
        found = loss_named(loss, **options)(batch)
        for term in [found] if isinstance(found, TokenLoss) else found:
            weight = torch.ones(len(joined)) if term.weight is None else term.weight
            total = total + coefficient * term.coefficient * (weight * term.value).sum() / weight.sum()
    return total


each_mixture = pytest.mark.parametrize("name", list(LOSSES))
each_chunk = pytest.mark.parametrize("chunk_tokens", [1, 4, 22, 23, 100])


@each_mixture
@each_chunk
def test_chunks_give_the_value_and_the_gradient_of_all_tokens_at_once(name: str, chunk_tokens: int) -> None:
    student = Student()
    expected = plain(student, name, [student.tokens()])
    expected.backward()
    expected_gradient = student.gradient()
    objective = objective_of(student, name, chunk_tokens)
    sums = objective.sums(student.tokens())
    assert objective.value(sums) == pytest.approx(expected.item(), rel=1e-6)
    again = objective.backward(student.tokens(), sums[:, 1])
    torch.testing.assert_close(again, sums, rtol=1e-12, atol=0)
    torch.testing.assert_close(student.gradient(), expected_gradient, rtol=1e-6, atol=1e-6)


@each_mixture
def test_micro_batches_share_one_normaliser(name: str) -> None:
    """Micro-batches of different sizes count by their tokens and weights, not alike."""
    student = Student()
    shapes = [(0, 23), (1, 5), (2, 9)]
    expected = plain(student, name, [student.tokens(*shape) for shape in shapes])
    expected.backward()
    expected_gradient = student.gradient()
    objective = objective_of(student, name, chunk_tokens=4)
    sums = torch.stack([objective.sums(student.tokens(*shape)) for shape in shapes]).sum(0)
    for shape in shapes:
        objective.backward(student.tokens(*shape), sums[:, 1])
    assert objective.value(sums) == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(student.gradient(), expected_gradient, rtol=1e-6, atol=1e-6)


def test_sums_are_of_weighted_values_and_of_weights() -> None:
    student = Student()
    objective = objective_of(student, "dad", chunk_tokens=4)
    tokens = student.tokens()
    sums = objective.sums(tokens)
    found = loss_named("dad")(
        DistillationBatch(student.head(tokens.student), student.head(tokens.teacher), tokens.labels)
    )
    assert isinstance(found, list)
    weight = found[1].weight
    assert weight is not None
    value = found[1].value.detach()
    expected = [[value.sum(), TOKENS], [(weight * value).sum(), weight.sum()]]
    assert sums.dtype == torch.float64
    assert not sums.requires_grad
    torch.testing.assert_close(sums, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_trained_output_layer_gets_its_gradient_from_every_chunk() -> None:
    student = Student()
    student.head.requires_grad_()
    plain(student, "dad", [student.tokens()]).backward()
    assert student.head.weight.grad is not None
    expected = student.head.weight.grad.clone()
    student.zero_grad()
    objective = objective_of(student, "dad", chunk_tokens=4)
    objective.backward(student.tokens(), objective.sums(student.tokens())[:, 1])
    torch.testing.assert_close(student.head.weight.grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["dad", "all together"])
def test_no_tokens_add_nothing(name: str) -> None:
    student = Student()
    objective = objective_of(student, name, chunk_tokens=4)
    sums = objective.sums(student.tokens(count=0))
    assert sums.tolist() == [[0.0, 0.0]] * len(sums)
    assert objective.backward(student.tokens(count=0), torch.ones(len(sums))).tolist() == sums.tolist()
    assert not student.gradient().any()


def test_low_precision_states_are_compared_in_float32() -> None:
    student = Student().bfloat16()
    seen = []

    class Watching(DistillationLoss):
        name = "watching"
        needs_hidden_states = True

        def __call__(self, batch: DistillationBatch) -> TokenLoss:
            seen.extend([batch.student_logits, batch.teacher_logits, *batch.student_hidden, *batch.teacher_hidden])
            return TokenLoss((batch.student_logits - batch.teacher_logits).square().mean(-1))

    tokens = Tokens(*(torch.randn(5, HIDDEN).bfloat16() for _ in range(2)), torch.zeros(5, dtype=torch.int64))
    tokens = Tokens(
        tokens.student.requires_grad_(), tokens.teacher, tokens.labels, (tokens.student,), (tokens.teacher,)
    )
    Objective([(Watching(), 1.0)], student.head, 2 * VOCABULARY, VOCABULARY).backward(tokens, torch.tensor([5.0]))
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    assert tokens.student.grad is not None
    assert tokens.student.grad.dtype == torch.bfloat16
    assert bool(tokens.student.grad.any())


def test_only_losses_that_ask_for_hidden_states_see_them() -> None:
    student = Student()
    seen = {}

    class Asking(DistillationLoss):
        name = "asking"
        needs_hidden_states: ClassVar[bool] = True

        def __call__(self, batch: DistillationBatch) -> TokenLoss:
            seen[self.name] = len(batch.student_hidden), len(batch.teacher_hidden)
            return TokenLoss(batch.student_logits.sum(-1))

    class Silent(Asking):
        name = "silent"
        needs_hidden_states = False

    both = Objective([(Asking(), 1.0), (Silent(), 1.0)], student.head, VOCABULARY, VOCABULARY)
    assert both.needs_hidden_states
    assert not Objective([(Silent(), 1.0)], student.head, VOCABULARY, VOCABULARY).needs_hidden_states
    both.sums(student.tokens())
    assert seen == {"asking": (2, 2), "silent": (0, 0)}


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any floating-point result ever had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, list | tuple) else (result,):
            if isinstance(part, Tensor) and part.is_floating_point():
                self.elements = max(self.elements, part.untyped_storage().nbytes() // part.element_size())
        return result


def test_logits_of_a_large_vocabulary_never_exist_for_more_than_one_chunk() -> None:
    vocabulary, tokens, chunk_elements = 128 * 1024, 2048, 2**22
    output = torch.randn(vocabulary, 4)
    student, teacher = torch.randn(tokens, 4, requires_grad=True), torch.randn(tokens, 4)
    batch = Tokens(student, teacher, torch.zeros(tokens, dtype=torch.int64))
    objective = Objective([(loss_named("dad"), 1.0)], lambda hidden: hidden @ output.T, chunk_elements, vocabulary)
    part = batch.part(slice(0, 64))
    with LargestTensor() as largest:
        sums = objective.sums(part)
        objective.backward(batch, sums[:, 1])
    assert largest.elements == chunk_elements
    assert student.grad is not None
    assert bool(student.grad.any(-1).all())


@pytest.mark.parametrize("backward", [False, True])
def test_a_chunk_is_let_go_before_the_next_one(backward: bool) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    output = torch.randn(VOCABULARY, HIDDEN)

    def head(hidden: Tensor) -> Tensor:
        nonlocal most
        most = max(most, sum(logits() is not None for logits in alive))
        logits = hidden @ output.T
        alive.append(weakref.ref(logits))
        return logits

    class Squared(DistillationLoss):
        """Its graph holds on to the logits themselves."""

        name = "squared"

        def __call__(self, batch: DistillationBatch) -> TokenLoss:
            return TokenLoss((batch.student_logits.square() * batch.teacher_logits.square()).sum(-1))

    tokens = Tokens(torch.randn(12, HIDDEN, requires_grad=True), torch.randn(12, HIDDEN), torch.zeros(12).long())
    objective = Objective([(Squared(), 1.0)], head, 3 * VOCABULARY, VOCABULARY)
    if backward:
        objective.backward(tokens, torch.ones(1))
    else:
        objective.sums(tokens)
    assert len(alive) == 2 * 4
    assert most == 1  # the teacher's logits of the chunk at hand, when the student's are made


class Odd(DistillationLoss):
    """Returns whatever it is given to return."""

    name = "odd"

    def __init__(self, result: Callable[[DistillationBatch], Any], needs_hidden_states: bool = False) -> None:
        super().__init__()
        self.result = result
        self.needs_hidden_states = needs_hidden_states  # type: ignore[misc]

    def __call__(self, batch: DistillationBatch) -> Any:
        return self.result(batch)


def values(batch: DistillationBatch) -> Tensor:
    return batch.student_logits.square().mean(-1)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (values, "'odd' must return a TokenLoss or a list of them, not Tensor"),
        (lambda batch: [], "'odd' must return a TokenLoss or a list of them, not a list of nothing"),
        (lambda batch: (TokenLoss(values(batch)), 1.0), "not a tuple of TokenLoss, float"),
        (lambda batch: TokenLoss(values(batch).mean()), r"'odd' must return values of shape \[tokens\], here \[4\]"),
        (lambda batch: TokenLoss(batch.student_logits), r"not a tensor \[4, 29\]"),
        (lambda batch: TokenLoss(values(batch), torch.ones(1)), r"'odd' must return weights of shape \[tokens\]"),
        (lambda batch: TokenLoss(0.0), "not float"),
        (lambda batch: TokenLoss(values(batch).detach()), "'odd' returned values that do not depend on the student"),
    ],
)
def test_a_loss_that_breaks_its_contract_is_named(result: Callable[[DistillationBatch], Any], message: str) -> None:
    student = Student()
    objective = Objective([(Odd(result), 1.0)], student.head, 4 * VOCABULARY, VOCABULARY)
    with pytest.raises(LowbitError, match=message):
        objective.backward(student.tokens(), torch.ones(1))


@pytest.mark.parametrize("coefficients", [(1.0,), (1.0, 1.0, 1.0), (1.0, 2.0)])
def test_terms_that_change_with_the_batch_are_refused(coefficients: tuple[float, ...]) -> None:
    student = Student()
    now = [(1.0, 1.0)]
    odd = Odd(lambda batch: [TokenLoss(values(batch), None, coefficient) for coefficient in now[0]])
    objective = Objective([(odd, 1.0)], student.head, 4 * VOCABULARY, VOCABULARY)
    objective.sums(student.tokens())
    now[0] = coefficients
    with pytest.raises(LowbitError, match="'odd' returned 2 terms"):
        objective.sums(student.tokens())


def test_a_loss_that_needs_hidden_states_is_not_called_without() -> None:
    student = Student()
    tokens = student.tokens()
    objective = objective_of(student, "hidden states alone", chunk_tokens=4)
    with pytest.raises(LowbitError, match="'mse' needs the outputs of the decoder blocks"):
        objective.sums(Tokens(tokens.student, tokens.teacher, tokens.labels))


@pytest.mark.parametrize("total", [0.0, -1.0])
def test_weights_that_sum_to_nothing_are_refused(total: float) -> None:
    student = Student()
    objective = objective_of(student, "dad", chunk_tokens=4)
    with pytest.raises(LowbitError, match="weights of distillation loss 'dad' sum to"):
        objective.backward(student.tokens(), torch.tensor([1.0, total]))
    with pytest.raises(LowbitError, match="weights of distillation loss 'dad' sum to"):
        objective.value(torch.tensor([[1.0, 1.0], [1.0, total]]))


def test_sums_of_another_number_of_terms_are_refused() -> None:
    student = Student()
    objective = objective_of(student, "dad", chunk_tokens=4)
    with pytest.raises(LowbitError, match="2 terms, but sums for 1 came"):
        objective.backward(student.tokens(), torch.ones(1))


def test_a_divergence_reaches_the_trainer_as_a_number() -> None:
    """What is not finite is for the trainer to judge, which knows the step."""
    student = Student()
    student.head.weight.data.fill_(math.nan)
    objective = objective_of(student, "dad", chunk_tokens=4)
    sums = objective.sums(student.tokens())
    assert math.isnan(objective.value(sums))
    objective.backward(student.tokens(), sums[:, 1])


@each_mixture
@each_chunk
def test_a_measured_micro_batch_gives_the_same_sums_and_gradient(name: str, chunk_tokens: int) -> None:
    student = Student()
    objective = objective_of(student, name, chunk_tokens)
    sums = objective.sums(student.tokens())
    objective.backward(student.tokens(), sums[:, 1])
    expected = student.gradient()
    tokens = student.tokens()
    measured = objective.measure(tokens)
    assert torch.allclose(measured.sums, sums)
    assert torch.allclose(objective.backward(tokens, sums[:, 1], measured), sums)
    assert torch.allclose(student.gradient(), expected, atol=1e-7)
