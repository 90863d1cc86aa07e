"""End-to-end distillation: the whole student against the frozen teacher, on one process or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowbit import preemption
from lowbit.contracts import DistillationSettings, TrainingStep
from lowbit.distillation.curve import Curve
from lowbit.distillation.gradients import average_gradients, clip_gradients
from lowbit.distillation.objective import Objective, Tokens
from lowbit.distillation.optimization import has_diverged, make_optimizer, rate_at, set_rate
from lowbit.distillation.parametrized import ParametrizedWeights
from lowbit.distillation.processes import is_sharded
from lowbit.distillation.remembered_teacher import RememberedTeacher
from lowbit.distillation.sample_order import SampleOrder
from lowbit.distillation.saving import SaveTimer, moments, put_moments_back
from lowbit.distillation.sharding import shard, whole
from lowbit.distillation.student import Body, precision_context
from lowbit.distillation.training_store import TrainingStore
from lowbit.errors import LowbitError


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
    teacher: Body | RememberedTeacher
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
        self._at_once = settings.sequences_at_once(accelerator.num_processes)
        held_out = held_out_samples(len(work.tokens), settings)
        self._training, self._held_out = work.tokens[:-held_out], work.tokens[-held_out:]
        self._order = SampleOrder(len(self._training), settings.batch_size, seed)
        if settings.batch_size % accelerator.num_processes:
            raise LowbitError(
                f"distillation.batch_size {settings.batch_size} cannot be shared out among {accelerator.num_processes} "
                "processes; give a multiple"
            )
        if is_sharded():
            shard(work.student, work.weights.scales().values(), self._device, accelerator.num_processes)
        weights = work.weights
        self._optimizer = make_optimizer(
            weights.latent_weights(), weights.scales(), settings, weights.unquantized(), settings.norm_rate
        )
        self._trained: dict[str, nn.Parameter] = {
            group["name"]: group["params"][0] for group in self._optimizer.param_groups
        }
        self._timer = SaveTimer(settings.checkpoint_minutes)
        self._started = time.monotonic()

    def run(self) -> Curve:
        """Train, leave the weights in their best state, and return the learning curve.

        Raises:
            LowbitError: The training diverges; the message names the step and the last good state.
            Interrupted: A signal came; the training is saved at the step that it had reached.
        """
        curve = self._resume()
        self._started = time.monotonic() - self._store.seconds()
        if not curve.held_out:
            self._look(curve, 0)
        with preemption.saving():
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
        norm = clip_gradients(list(self._trained.values()), settings.gradient_clip)
        if has_diverged(loss, norm, curve.losses, settings):
            raise self._divergence(curve, step + 1, f"loss {loss:.4g}, gradient norm {norm:.4g}")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._work.weights.project()
        curve.losses.append(loss)
        taken = step + 1
        looked = taken % settings.evaluate_every == 0 or taken == settings.steps
        held_out = self._look(curve, taken) if looked else None
        stopping, due = self._asked()
        if stopping or due or taken % settings.checkpoint_every == 0:
            self._save(curve)
        self._on_step(TrainingStep("distillation", None, taken, settings.steps, loss, held_out, share))
        if stopping:
            preemption.stop()

    def _asked(self) -> tuple[bool, bool]:
        """Say whether a process is to end, and whether the main one's clock asks for a checkpoint; to all the same."""
        due = self._accelerator.is_main_process and self._timer.due()
        asked = torch.tensor([float(preemption.requested()), float(due)])
        if self._accelerator.num_processes > 1:
            asked = self._reduced(asked)
        return bool(asked[0]), bool(asked[1])

    def _divergence(self, curve: Curve, step: int, found: str) -> LowbitError:
        return LowbitError(
            f"the distillation diverged in step {step} of {self._settings.steps}: {found}; its best state, of step "
            f"{curve.best_step}, is kept as {self._store.best_file(curve.best_step)}: lower distillation.weight_rate "
            "and distillation.scale_rate"
        )

    def _gradients(self, batch: Tensor) -> float:
        """Fill the gradients for one global batch [samples, length] and return its loss."""
        share = len(batch) // self._accelerator.num_processes
        own = batch.split(share)[self._accelerator.process_index]
        micro_batches = own.split(self._at_once)
        limited = self._settings.micro_batch_size is not None and len(micro_batches) > 1
        if self._work.objective.uniform or limited:
            loss = self._backward_in_turn(micro_batches, self._normalisers(micro_batches, batch))
        else:
            loss = self._backward_together(micro_batches)
        average_gradients(list(self._trained.values()), self._accelerator.num_processes)
        return loss

    def _normalisers(self, micro_batches: Sequence[Tensor], batch: Tensor) -> Tensor:
        """Return the sums of weights over the whole step, [terms]."""
        objective = self._work.objective
        if objective.uniform:
            return torch.full((objective.terms,), float(batch[:, 1:].numel()), dtype=torch.float64)
        return self._reduced(torch.stack([self._sums(micro) for micro in micro_batches]).sum(0))[:, 1]

    def _backward_in_turn(self, micro_batches: Sequence[Tensor], normalisers: Tensor) -> float:
        """Add the gradients of this process's micro-batches, and return the loss of the whole step."""
        objective = self._work.objective
        # Gradients are averaged over processes, sums are not.
        divisors = normalisers / self._accelerator.num_processes
        sums = [objective.backward(self._forward(micro), divisors) for micro in micro_batches]
        return objective.value(self._reduced(torch.stack(sums).sum(0)))

    def _backward_together(self, micro_batches: Sequence[Tensor]) -> float:
        """Do the same for losses whose sums of weights only forward passes tell: all of these come first."""
        objective = self._work.objective
        tokens = [self._forward(micro) for micro in micro_batches]
        measured = [objective.measure(part) for part in tokens]
        total = self._reduced(torch.stack([part.sums for part in measured]).sum(0))
        divisors = total[:, 1] / self._accelerator.num_processes
        for part, known in zip(tokens, measured, strict=True):
            objective.backward(part, divisors, known)
        return objective.value(total)

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
            student, student_hidden = self._work.student(micro, with_hidden)
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
        if not math.isfinite(loss):
            if curve.held_out:
                raise self._divergence(curve, step, f"held-out loss {loss:.4g} after it")
            raise LowbitError(f"the held-out loss is {loss:.4g} before the first step: the loss, or a model, overflows")
        if curve.look(step, loss):
            state = self._collected(self._trained.items())
            if self._accelerator.is_main_process:
                self._store.save_best(step, state)
        self._accelerator.wait_for_everyone()
        return loss

    def held_out_loss(self) -> float:
        """Return the objective on the held-out sequences."""
        processes, index = self._accelerator.num_processes, self._accelerator.process_index
        parts = self._held_out.split(self._at_once)
        sums = []
        for first in range(0, len(parts), processes):
            own = parts[first : first + processes][index:][:1]
            # All run equally often, as sharing out the weights demands: one without a sequence runs one for nothing.
            sums.append(self._sums(own[0]) if own else 0 * self._sums(self._held_out[:1]))
        return self._work.objective.value(self._reduced(torch.stack(sums).sum(0)))

    def _reduced(self, sums: Tensor) -> Tensor:
        """Return the sum over all processes."""
        total: Tensor = self._accelerator.reduce(sums.to(self._device), "sum")
        return total.cpu()

    def _collected(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Return whole copies on the CPU in the main process; the others only help to make them whole."""
        kept = {}
        for name, tensor in tensors:
            copy = whole(tensor.detach())
            if self._accelerator.is_main_process:
                kept[name] = copy.to("cpu", copy=True)
        return kept

    def _save(self, curve: Curve) -> None:
        """Store a checkpoint of parameters, moments, curve and the seconds that all took."""
        tensors = self._collected((*self._trained.items(), *moments(self._optimizer, self._trained)))
        if self._accelerator.is_main_process:
            record = {**curve.to_dict(), "seconds": time.monotonic() - self._started}
            self._store.save(len(curve.losses), tensors, record)
        self._timer.saved()
        self._accelerator.wait_for_everyone()

    def _resume(self) -> Curve:
        """Put the last checkpoint back, if there is one."""
        record = self._store.record()
        if record is None:
            return Curve()
        tensors = self._store.tensors(record["step"])
        self._work.weights.load(tensors)
        put_moments_back(self._optimizer, self._trained, tensors)
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
