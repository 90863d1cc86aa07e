"""Block-wise reconstruction: each decoder block is trained against its full-precision outputs, one in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowbit import preemption
from lowbit.contracts import ReconstructionSettings, TrainingStep
from lowbit.distillation.block_checkpoint import BlockCheckpoint
from lowbit.distillation.gradients import average_gradients, clip_gradients
from lowbit.distillation.optimization import has_diverged, make_optimizer, rate_at, set_rate
from lowbit.distillation.parametrized import ParametrizedWeights
from lowbit.distillation.sample_order import SampleOrder
from lowbit.distillation.student import precision_context
from lowbit.distillation.training_store import TrainingStore
from lowbit.errors import LowbitError
from lowbit.models import WeightTarget, write_weight
from lowbit.models.freed_memory import kept_freed_memory
from lowbit.quantization.block_training import BlockTask, TrainedBlock

JUDGED_SAMPLES = 16
"""Sequences on which a block is compared before and after its training."""


class BlockReconstruction:
    """A `BlockTrainer`: minimizes the mean squared error of a block's outputs.

    The error is divided by the mean square of what the block adds to its inputs, so that losses of different blocks
    are alike. A block that training made no better on its training sequences stays as it was quantized. A killed run
    continues a block's training from its last checkpoint, with the same result.

    Args:
        settings: Steps, batch and rates.
        seed: Decides the order of the sequences, together with the block's position.
        on_step: Is told of every step.
        device: Where blocks are worked on.
        store: Where checkpoints lie; `None` keeps none.
    """

    def __init__(
        self,
        settings: ReconstructionSettings,
        seed: int,
        on_step: Callable[[TrainingStep], None],
        device: str = "cpu",
        store: TrainingStore | None = None,
    ) -> None:
        self._settings = settings
        self._seed = seed
        self._on_step = on_step
        self._device = torch.device(device)
        self._store = store

    @property
    def reference(self) -> str:
        """Outputs to match."""
        return self._settings.reference

    @torch.enable_grad()
    def train(self, task: BlockTask) -> TrainedBlock:
        """Train a block.

        Raises:
            LowbitError: A quantizer offers no training, or the training diverges.
        """
        task.block.requires_grad_(False)
        samples = min(task.samples, self._settings.n_samples or task.samples)
        judged = list(range(min(samples, JUDGED_SAMPLES)))
        run = _batched(task, judged[:2], self._device)
        scale = self._scale(task, judged)
        with _put_back(task):
            for weight in task.weights:
                write_weight(task.model, weight.target, weight.quantized.dequantize())
            before = self._judge(task, run, judged, scale)
        with _put_back(task):
            weights = ParametrizedWeights(task.model, task.weights, {})
            start = weights.state()
            order = SampleOrder(samples, self._settings.batch_size, self._seed)
            with kept_freed_memory():
                losses = self._steps(task, run, weights, order, scale)
            after = self._judge(task, run, judged, scale)
            improved = after < before
            made, state = weights.freeze(), weights.state()
            weights.detach()
        record = {
            "loss_before": before,
            "loss_after": after if math.isfinite(after) else None,
            "kept": "trained" if improved else "untrained",
            "losses": [float(f"{loss:.6g}") for loss in losses],
        }
        if improved:
            return TrainedBlock(made, state, record)
        return TrainedBlock({weight.target.name: weight.quantized for weight in task.weights}, start, record)

    def _steps(
        self,
        task: BlockTask,
        run: Callable[[Tensor], Tensor],
        weights: ParametrizedWeights,
        order: SampleOrder,
        scale: float,
    ) -> list[float]:
        """Take every optimizer step and return their losses."""
        settings = self._settings
        optimizer = make_optimizer(weights.latent_weights(), weights.scales(), settings)
        saved = BlockCheckpoint(self._store, task.index, weights, optimizer, settings.checkpoint_minutes)
        losses = saved.resume()
        with preemption.saving():
            for step in range(len(losses), settings.steps):
                share = rate_at(step, settings)
                set_rate(optimizer, share)
                losses.append(self._step(task, run, order.batch(step), weights, optimizer, losses, scale))
                saved.keep(losses)
                self._on_step(
                    TrainingStep("reconstruction", task.index, step + 1, settings.steps, losses[-1], None, share)
                )
                if preemption.requested():
                    preemption.stop()
        return losses

    def _step(
        self,
        task: BlockTask,
        run: Callable[[Tensor], Tensor],
        positions: Sequence[int],
        weights: ParametrizedWeights,
        optimizer: torch.optim.Optimizer,
        losses: Sequence[float],
        scale: float,
    ) -> float:
        """Take one optimizer step and return its loss."""
        settings, trained = self._settings, list(weights.trained().values())
        error = self._loss(task, run, positions) / scale
        error.backward()
        loss = float(error.detach())
        average_gradients(trained, processes=1)
        norm = clip_gradients(trained, settings.gradient_clip)
        if has_diverged(loss, norm, losses, settings):
            raise LowbitError(
                f"the reconstruction of block {task.index} diverged in step {len(losses) + 1} of {settings.steps}: "
                f"loss {loss:.4g}, gradient norm {norm:.4g}; blocks before it are kept: lower "
                "reconstruction.weight_rate and reconstruction.scale_rate"
            )
        optimizer.step()
        optimizer.zero_grad()
        weights.project()
        return loss

    def _loss(self, task: BlockTask, run: Callable[[Tensor], Tensor], positions: Sequence[int]) -> Tensor:
        with precision_context(self._device, self._settings.precision):
            outputs = run(task.inputs(positions).to(self._device))
        return (outputs.float() - task.outputs(positions).to(self._device)).square().mean()

    @torch.no_grad()
    def _judge(self, task: BlockTask, run: Callable[[Tensor], Tensor], positions: Sequence[int], scale: float) -> float:
        batches = torch.tensor(positions).split(self._settings.batch_size)
        total = sum(float(self._loss(task, run, batch.tolist())) * len(batch) for batch in batches)
        return total / len(positions) / scale

    @torch.no_grad()
    def _scale(self, task: BlockTask, positions: Sequence[int]) -> float:
        """Return the mean square of what the full-precision block adds to the hidden states."""
        added = [task.outputs([position]) - task.inputs([position]) for position in positions]
        return float(torch.stack([difference.square().mean() for difference in added]).mean()) or 1.0


@contextmanager
def _put_back(task: BlockTask) -> Iterator[None]:
    """Give the block its full-precision weights again when the context closes."""
    named = {weight.target.parameter_name: weight.target for weight in task.weights}
    kept = {name: _parameter(task, target).detach().clone() for name, target in named.items()}
    yield
    for name, target in named.items():
        _parameter(task, target).requires_grad_(False).copy_(kept[name])


def _parameter(task: BlockTask, target: WeightTarget) -> nn.Parameter:
    parameter: nn.Parameter = getattr(task.model.get_submodule(target.module), target.parameter)
    return parameter


@torch.no_grad()
def _batched(task: BlockTask, positions: Sequence[int], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what runs the block on a batch: at once if that gives the same as one by one, else one by one.

    The arguments that the model passes to its blocks were recorded for one sequence; most blocks take more with them.
    """

    def one_by_one(hidden: Tensor) -> Tensor:
        return torch.cat([task.run(sample) for sample in hidden.split(1)])

    hidden = task.inputs(positions).to(device)
    expected = one_by_one(hidden)
    try:
        found = task.run(hidden)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return one_by_one
    same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    return task.run if same else one_by_one
