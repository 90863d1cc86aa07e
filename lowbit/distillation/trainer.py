"""End-to-end distillation: the whole student against the frozen teacher, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lowbit.contracts import DistillationSettings, TrainingStep
from lowbit.distillation.curve import Curve
from lowbit.distillation.objective import Objective, Tokens
from lowbit.distillation.optimization import has_diverged, make_optimizer, rate_at, set_rate
from lowbit.distillation.parametrized import ParametrizedWeights
from lowbit.distillation.sample_order import SampleOrder
from lowbit.distillation.student import Body, precision_context
from lowbit.distillation.training_store import TrainingStore
from lowbit.errors import LowbitError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Distillation:
    """What is trained, towards what, and on which tokens.

    Args:
        student: Its weights are parametrized; everything else is frozen.
        teacher: Frozen.
        weights: The student's trainable weights.
        objective: The losses, on the shared output layer.
        tokens: int64 [samples, length].
    """

    student: Body
    teacher: Body
    weights: ParametrizedWeights
    objective: Objective
    tokens: Tensor


class Trainer:
    """Runs the optimizer steps of a distillation, with checkpoints, a held-out loss and early stopping.

    Every sum that a step needs runs over all processes, so that the number of processes and of micro-batches changes
    nothing but rounding. Data, order and learning rates follow from the step's number, so that a continued run takes
    the same steps.

    Args:
        work: What to train.
        settings: Steps, batch and rates.
        seed: Decides the order of the sequences.
        store: Where checkpoints lie; the main process writes, all read.
        accelerator: Processes and device.
        on_step: Is told of every step.

    Raises:
        LowbitError: The batch cannot be shared out among the processes, or there are too few sequences.
    """

    def __init__(
        self,
        work: Distillation,
        settings: DistillationSettings,
        seed: int,
        store: TrainingStore,
        accelerator: Accelerator,
        on_step: Callable[[TrainingStep], None],
    ) -> None:
        self._work = work
        self._settings = settings
        self._store = store
        self._accelerator = accelerator
        self._on_step = on_step
        self._device = accelerator.device
        held_out = held_out_samples(len(work.tokens), settings)
        self._training, self._held_out = work.tokens[:-held_out], work.tokens[-held_out:]
        self._order = SampleOrder(len(self._training), settings.batch_size, seed)
        if settings.batch_size % accelerator.num_processes:
            raise LowbitError(
                f"distillation.batch_size {settings.batch_size} cannot be shared out among {accelerator.num_processes} "
                "processes; give a multiple"
            )
        optimizer = make_optimizer(work.weights.latent_weights(), work.weights.scales(), settings)
        self._names = [group["name"] for group in optimizer.param_groups]
        self._student, self._optimizer = accelerator.prepare(work.student, optimizer)

    def run(self) -> Curve:
        """Train, leave the weights in their best state, and return the learning curve.

        Raises:
            LowbitError: The training diverges; the message names the step and the last good state.
        """
        curve = self._resume()
        if not curve.held_out:
            self._look(curve, 0)
        while len(curve.losses) < self._settings.steps and not curve.exhausted(self._settings.patience):
            self._take_step(curve)
        self._save(curve)
        self._work.weights.load(self._store.best(curve.best_step))
        return curve

    def _take_step(self, curve: Curve) -> None:
        """Take one optimizer step and, where they are due, a look at the held-out loss and a checkpoint."""
        settings, step = self._settings, len(curve.losses)
        share = rate_at(step, settings)
        set_rate(self._optimizer, share)
        loss = self._gradients(self._training[self._order.batch(step)])
        norm = self._accelerator.clip_grad_norm_(self._student.parameters(), settings.gradient_clip or torch.inf)
        if has_diverged(loss, float(norm), curve.losses, settings):
            raise LowbitError(
                f"the distillation diverged in step {step + 1} of {settings.steps}: loss {loss:.4g}, gradient norm "
                f"{float(norm):.4g}; its best state, of step {curve.best_step}, is kept as "
                f"{self._store.best_file(curve.best_step)}: lower distillation.weight_rate and distillation.scale_rate"
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._work.weights.project()
        curve.losses.append(loss)
        taken = step + 1
        looked = taken % settings.evaluate_every == 0 or taken == settings.steps
        held_out = self._look(curve, taken) if looked else None
        if taken % settings.checkpoint_every == 0:
            self._save(curve)
        self._on_step(TrainingStep("distillation", None, taken, settings.steps, loss, held_out, share))

    def _gradients(self, batch: Tensor) -> float:
        """Fill the gradients for one global batch [samples, length] and return its loss."""
        share = len(batch) // self._accelerator.num_processes
        own = batch.split(share)[self._accelerator.process_index]
        micro_batches = own.split(self._settings.micro_batch_size or share)
        if len(micro_batches) > 1 and not self._work.objective.uniform:
            normalisers = self._reduced(torch.stack([self._sums(micro) for micro in micro_batches]).sum(0))[:, 1]
            return self._backward(micro_batches, lambda _: normalisers, batch)
        return self._backward(micro_batches, lambda tokens: self._normalisers(tokens, batch), batch)

    def _normalisers(self, tokens: Tokens, batch: Tensor) -> Tensor:
        """Return the sums of weights over the whole step, [terms]."""
        objective = self._work.objective
        if objective.uniform:
            return torch.full((objective.terms,), float(batch[:, 1:].numel()), dtype=torch.float64)
        return self._reduced(objective.sums(tokens))[:, 1]

    def _backward(
        self, micro_batches: Sequence[Tensor], normalisers: Callable[[Tokens], Tensor], batch: Tensor
    ) -> float:
        sums = []
        for number, micro in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with nullcontext() if last else self._accelerator.no_sync(self._student):
                tokens = self._forward(micro)
                # Gradients are averaged over processes, sums are not.
                divisors = normalisers(tokens) / self._accelerator.num_processes
                sums.append(self._work.objective.backward(tokens, divisors))
        return self._work.objective.value(self._reduced(torch.stack(sums).sum(0)))

    @torch.no_grad()
    def _sums(self, micro: Tensor) -> Tensor:
        return self._work.objective.sums(self._forward(micro))

    def _forward(self, micro: Tensor) -> Tokens:
        """Run both models on sequences [samples, length]; the last position of each has no label and is left out."""
        micro = micro.to(self._device)
        with_hidden = self._work.objective.needs_hidden_states
        with precision_context(self._device, self._settings.precision):
            with torch.no_grad():
                teacher, teacher_hidden = self._work.teacher(micro, with_hidden)
            student, student_hidden = self._student(micro, with_hidden)
        return Tokens(
            _flat(student),
            _flat(teacher),
            micro[:, 1:].flatten(),
            tuple(map(_flat, student_hidden)),
            tuple(map(_flat, teacher_hidden)),
        )

    def _look(self, curve: Curve, step: int) -> float:
        """Compute the held-out loss, and store the state if it is the best so far."""
        loss = self.held_out_loss()
        if curve.look(step, loss) and self._accelerator.is_main_process:
            self._store.save_best(step, self._work.weights.state())
        self._accelerator.wait_for_everyone()
        return loss

    def held_out_loss(self) -> float:
        """Return the objective on the held-out sequences."""
        size = self._settings.micro_batch_size or self._settings.batch_size // self._accelerator.num_processes
        own = self._held_out[self._accelerator.process_index :: self._accelerator.num_processes]
        # A process without a sequence of its own runs one that counts nothing: all take part in what is summed.
        sums = [self._sums(micro) for micro in own.split(size)] if len(own) else [0 * self._sums(self._held_out[:1])]
        return self._work.objective.value(self._reduced(torch.stack(sums).sum(0)))

    def _reduced(self, sums: Tensor) -> Tensor:
        """Return the sum over all processes."""
        total: Tensor = self._accelerator.reduce(sums.to(self._device), "sum")
        return total.cpu()

    def _save(self, curve: Curve) -> None:
        """Store a checkpoint of parameters, moments and curve."""
        tensors = self._work.weights.state() | dict(self._moments())
        if self._accelerator.is_main_process:
            self._store.save(len(curve.losses), tensors, curve.to_dict())
        self._accelerator.wait_for_everyone()

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's running means by `<name>.<moment>`."""
        for name, group in zip(self._names, self._optimizer.param_groups, strict=True):
            state: dict[str, Any] = self._optimizer.state.get(group["params"][0], {})
            yield from ((f"{name}.{moment}", state[moment].detach().cpu()) for moment in MOMENTS if moment in state)

    def _resume(self) -> Curve:
        """Put the last checkpoint back, if there is one."""
        record = self._store.record()
        if record is None:
            return Curve()
        tensors = self._store.tensors(record["step"])
        self._work.weights.load(tensors)
        for name, group in zip(self._names, self._optimizer.param_groups, strict=True):
            parameter = group["params"][0]
            found = {m: tensors[f"{name}.{m}"] for m in MOMENTS if f"{name}.{m}" in tensors}
            if found:
                device = parameter.device
                self._optimizer.state[parameter] = {m: t.to("cpu" if m == "step" else device) for m, t in found.items()}
        return Curve.from_dict(record)


def _flat(hidden: Tensor) -> Tensor:
    """Return [samples, length, hidden size] without each last position, [tokens, hidden size]."""
    return hidden[:, :-1].flatten(0, 1)


def held_out_samples(samples: int, settings: DistillationSettings) -> int:
    """Return how many sequences are held out: as asked for, else a sixteenth, at least 1 and at most 64.

    Raises:
        LowbitError: None would be left to train on.
    """
    wanted = settings.held_out or min(64, max(1, samples // 16))
    if wanted >= samples:
        raise LowbitError(
            f"{samples} training sequences, of which {wanted} are held out, leave none to train on; give more "
            "(--n_samples, training_data.generated.n_samples) or lower distillation.held_out"
        )
    return wanted
