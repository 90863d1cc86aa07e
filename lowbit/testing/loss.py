"""`LossConformance`: everything that a distillation loss must hold to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar
from unittest import SkipTest

import torch

from lowbit.contracts import DistillationBatch, DistillationLoss
from lowbit.errors import LowbitError
from lowbit.recipe.resolve import loss_config
from lowbit.testing.bare_machine import bare_machine
from lowbit.testing.batches import agreeing, random_batch, tensors_of, terms_of
from lowbit.testing.code import import_line, keywords
from lowbit.testing.failure import ANY_ERROR, ConformanceError, note, require
from lowbit.testing.loss_gradients import gradient_fault
from lowbit.testing.options_checks import OptionsChecks
from lowbit.testing.sameness import tensor_difference


class LossConformance(OptionsChecks):
    """The checks of a distillation loss.

    Example:
        class TestMyLoss(LossConformance):
            loss = MyLoss

    Args:
        loss: The class that is checked.
        options: Its options, where they differ from the defaults.
    """

    checked = "loss"
    loss: ClassVar[type[DistillationLoss]]
    options: ClassVar[Mapping[str, Any]] = {}

    def made(self) -> DistillationLoss:
        """Return the loss with its options.

        Raises:
            LowbitError: No loss was given.
        """
        loss = getattr(type(self), "loss", None)
        if not (isinstance(loss, type) and issubclass(loss, DistillationLoss)):
            raise LowbitError(
                f"{type(self).__name__}: set `loss` to your subclass of DistillationLoss, not to {loss!r}"
            )
        return loss(loss_config(loss, self.options))

    def code(self, *lines: str, batch: str = "random_batch()") -> str:
        """Return code that computes the loss, and further lines."""
        name = self.loss.__name__
        options = keywords(self.options).removeprefix(", ")
        call = f"batch = {batch}\nterms = terms_of({name}({name}.Config({options})), batch)"
        return "\n".join([import_line(self.loss), "from lowbit.testing import *", call, *lines])

    def test_there_is_one_finite_value_a_token(self) -> None:
        """Of the logits' dtype; weights, if any, are positive and take no gradient."""
        for tokens in (0, 1, 7):
            for dtype in (torch.float32, torch.float64):
                code = self.code(batch=f"random_batch({tokens}, dtype={dtype})")
                for term in terms_of(self.made(), random_batch(tokens, dtype=dtype)):
                    found = f"{term.value.dtype} {tuple(term.value.shape)}"
                    right = term.value.shape == (tokens,) and term.value.dtype == dtype
                    require(right, f"values {dtype} {(tokens,)}, one a token", found, code)
                    require(bool(term.value.isfinite().all()), "finite values", f"{term.value.tolist()}", code)
                    require(term.coefficient > 0, "a coefficient above 0", str(term.coefficient), code)
                    if term.weight is None:
                        continue
                    found = f"{tuple(term.weight.shape)}, requires_grad={term.weight.requires_grad}"
                    right = term.weight.shape == (tokens,) and not term.weight.requires_grad
                    require(right, f"weights of shape {(tokens,)} without gradient", found, code)
                    require(bool((term.weight > 0).all()), "weights above 0", str(term.weight.tolist()), code)

    def test_gradients_are_those_of_the_values(self) -> None:
        """Compared with differences in float64, for the student's logits and hidden states."""
        if told := gradient_fault(self.made()):
            raise ConformanceError(
                "gradients that agree with differences of the values (torch.autograd.gradcheck, float64)",
                told,
                self.code("terms[0].value.sum().backward()", "batch.student_logits.grad", batch="random_batch(3, 5)"),
            )

    def test_every_term_has_a_gradient(self) -> None:
        """At every token, in what the loss compares."""
        loss, batch = self.made(), random_batch()
        compared = batch.student_hidden if loss.needs_hidden_states else (batch.student_logits,)
        code = self.code("torch.autograd.grad(terms[0].value.sum(), batch.student_logits)")
        for number, term in enumerate(terms_of(loss, batch)):
            try:
                gradients = torch.autograd.grad(term.value.sum(), compared, retain_graph=True)
            except RuntimeError as error:
                raise ConformanceError(f"a gradient of term {number}", str(error), code) from error
            for gradient in gradients:
                require(bool(gradient.isfinite().all()), "finite gradients", "others", code)
                told = f"none of term {number} at some token"
                require(bool(gradient.abs().sum(-1).gt(0).all()), "a gradient at every token", told, code)

    def test_it_does_without_hidden_states_unless_it_needs_them(self) -> None:
        """Only where `needs_hidden_states` is set are there any."""
        if self.made().needs_hidden_states:
            return
        code = self.code(batch="random_batch(blocks=0)")
        try:
            terms = terms_of(self.made(), random_batch(blocks=0))
        except ANY_ERROR as error:  # whatever the code under test raises
            raise ConformanceError(
                "a loss without hidden states, or `needs_hidden_states = True`",
                f"{type(error).__name__}: {error}",
                code,
            ) from error
        require(all(bool(term.value.isfinite().all()) for term in terms), "finite values", "others", code)

    def test_tokens_do_not_see_each_other(self) -> None:
        """Tokens come in chunks; where one ends must decide nothing."""
        loss, batch = self.made(), random_batch(tokens=6)
        whole = terms_of(loss, batch)
        for begin, end in ((4, 6), (0, 4), (2, 4)):
            some = slice(begin, end)
            part = terms_of(loss, tokens_of(batch, some))
            code = self.code(
                f"terms[0].value[{begin}:{end}]  # the same for these tokens alone", batch="random_batch(6)"
            )
            require(len(whole) == len(part), f"{len(whole)} terms for any batch", str(len(part)), code)
            for first, second in zip(whole, part, strict=True):
                same = torch.allclose(first.value[some], second.value, rtol=1e-12, atol=1e-14)
                told = f"{second.value.tolist()}, not {first.value[some].tolist()}"
                require(same, "values of a token that do not depend on the other tokens", told, code)
                require(
                    first.coefficient == second.coefficient,
                    "a coefficient that does not depend on the batch",
                    f"{first.coefficient} and {second.coefficient}",
                    code,
                )

    def test_inputs_and_random_state_are_left_alone(self) -> None:
        """The next loss sees the same batch; the teacher gets no gradient."""
        batch, state = random_batch(), torch.get_rng_state()
        before = [tensor.detach().clone() for tensor in tensors_of(batch)]
        terms = terms_of(self.made(), batch)
        torch.stack([term.value.sum() for term in terms]).sum().backward()
        for number, (old, new) in enumerate(zip(before, tensors_of(batch), strict=True)):
            difference = tensor_difference(f"tensor {number} of the batch", old, new.detach())
            require(not difference, "inputs as they were", difference, self.code())
        untouched = torch.equal(torch.get_rng_state(), state)
        require(untouched, "the global random state as it was", "another one", self.code())
        teachers = (batch.teacher_logits, *batch.teacher_hidden)
        require(all(t.grad is None for t in teachers), "no gradient of the teacher's tensors", "one", self.code())

    def test_a_student_that_agrees_is_at_a_minimum(self) -> None:
        """Where student and teacher do the same, nothing pulls; a loss may mean otherwise, so this is but a note."""
        batch = random_batch()
        hidden = tuple(state.flip(0) for state in batch.teacher_hidden)
        other_teacher = replace(batch, teacher_logits=batch.teacher_logits.flip(0), teacher_hidden=hidden)
        pairs = zip(terms_of(self.made(), batch), terms_of(self.made(), other_teacher), strict=True)
        if all(torch.equal(term.value, other.value) for term, other in pairs):
            raise SkipTest("the loss compares with the data, not with the teacher")
        batch = agreeing(batch)
        trained = (batch.student_logits, *batch.student_hidden)
        for number, term in enumerate(terms_of(self.made(), batch)):
            gradients = torch.autograd.grad(term.value.sum(), trained, retain_graph=True, allow_unused=True)
            largest = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
            if largest >= 1e-12:
                note(f"a student that agrees with the teacher still has a gradient, {largest:.3g} in term {number}")

    def test_it_works_with_neither_cuda_nor_triton_nor_llvmlite(self) -> None:
        """Those are optional: a plugin imports them where they are used, and does without."""
        self.made()
        answer = bare_machine().ask("loss", {"loss": self.loss}, self.options)
        fault = answer.get("error") or ("" if answer["finite"] else "values that are not finite")
        require(
            not fault,
            "values where triton and llvmlite cannot be imported and no GPU is seen",
            fault,
            "import sys\nsys.modules.update(triton=None, llvmlite=None)\n" + self.code(),
        )


def tokens_of(batch: DistillationBatch, some: slice) -> DistillationBatch:
    """Return some of a batch's tokens."""
    return DistillationBatch(
        batch.student_logits[some],
        batch.teacher_logits[some],
        batch.labels[some],
        tuple(state[some] for state in batch.student_hidden),
        tuple(state[some] for state in batch.teacher_hidden),
    )
