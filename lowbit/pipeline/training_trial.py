"""What the pieces of an optimizer step cost, from taking them on random numbers in the model's shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lowbit.contracts import DistillationSettings, OptimizationSettings, WeightQuantizer
from lowbit.distillation.gradients import average_gradients, clip_gradients
from lowbit.distillation.objective import Objective, Tokens
from lowbit.distillation.optimization import make_optimizer, set_rate
from lowbit.distillation.parametrized import ParametrizedWeights
from lowbit.distillation.student import precision_context
from lowbit.models import WeightTarget
from lowbit.models.freed_memory import kept_freed_memory
from lowbit.pipeline.block_cost import affordable_tokens
from lowbit.pipeline.make_checkpoint import diagnose
from lowbit.pipeline.measuring import Stopwatch, peak_bytes_of, saved_bytes_of
from lowbit.pipeline.quantizer_cost import QuantizerTrial
from lowbit.pipeline.trial_model import TrialModel
from lowbit.quantization.block_training import TrainableWeight
from lowbit.quantization.one_target import QuantizedTarget, report_target
from lowbit.quantization.plan import QuantizationPlan
from lowbit.recipe import build_losses
from lowbit.registry import registry

SAMPLE_WEIGHTS = 2**22
FIRST_TOKENS = 64


@dataclass(frozen=True)
class _Cost:
    """What something costs in seconds: forward, and forward and back."""

    forward: float
    backward: float

    def times(self, number: float) -> Self:
        """Return the cost of so many."""
        return type(self)(*(value * number for value in astuple(self)))


@dataclass(frozen=True)
class WeightCost(_Cost):
    """What trained weights cost, by weight or all together.

    Args:
        forward: Fake quantization alone.
        backward: Fake quantization and the way back through it.
        update: The optimizer's step.
        freeze: Quantizing it for good, and its report.
        kept_bytes: Memory that the way forward leaves for the way back.
        peak_bytes: The most that forward and way back need.
    """

    update: float
    freeze: float
    kept_bytes: float
    peak_bytes: float


@dataclass(frozen=True)
class PassCost(_Cost):
    """What a sequence costs, or a token.

    Args:
        forward: Seconds through one block or all, or the output layer and the loss.
        backward: Forward and backward.
        kept_bytes: Memory that the way forward leaves for the way back.
        peak_bytes: The most that forward and way back need.
    """

    kept_bytes: float
    peak_bytes: float


def measure_weights(
    quantizer: WeightQuantizer, columns: int, rows: int, settings: OptimizationSettings, watch: Stopwatch
) -> WeightCost:
    """Train a random matrix for a few steps.

    Args:
        quantizer: Makes it trainable.
        columns: Of the matrices that will be trained.
        rows: Their largest number; the sample has at most some millions of weights.
        settings: Of the optimizer.
        watch: Times.
    """
    rows = min(rows, max(1, SAMPLE_WEIGHTS // columns))
    matrix, statistics = QuantizerTrial(quantizer, "plain", diagnose, watch, False).matrix(rows, columns)
    quantized = quantizer.quantize(matrix, statistics, torch.Generator().manual_seed(0))
    layer = nn.Linear(columns, rows, bias=False, device=matrix.device)
    with torch.no_grad():
        layer.weight.copy_(matrix)
    model = nn.ModuleDict({"sample": layer})
    target = WeightTarget("sample", "sample", "weight", None, False, rows, columns)
    weights = ParametrizedWeights(model, [TrainableWeight(target, quantizer, quantized)], {})
    optimizer = make_optimizer(weights.latent_weights(), weights.scales(), settings)
    set_rate(optimizer, 1.0)
    trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    gradient = torch.randn_like(matrix).mul_(1e-3)

    def update() -> None:
        average_gradients(trained, processes=1)
        clip_gradients(trained, settings.gradient_clip)
        optimizer.step()
        weights.project()

    def freeze() -> None:
        made = next(iter(weights.freeze().values()))
        report_target(target, matrix, QuantizedTarget(quantized, (), 0.0), made, None, diagnose)

    with torch.enable_grad():
        layer.weight.backward(gradient)  # The first time is slower than all others.
        update()
        kept = saved_bytes_of(lambda: layer.weight, [*model.parameters(), *model.buffers()])
        peak = peak_bytes_of(lambda: layer.weight.backward(gradient), watch.device)
        with kept_freed_memory():
            layer.weight.backward(gradient)
            backward = watch.typical(lambda: layer.weight.backward(gradient))
            updated = watch.typical(update)
            with torch.no_grad():
                forward = watch.typical(lambda: layer.weight)
    found = WeightCost(forward, backward, updated, watch.typical(freeze), float(kept), float(peak))
    return found.times(1 / matrix.numel())


def measure_block(
    model: TrialModel,
    plan: QuantizationPlan,
    index: int,
    batch: tuple[int, int],
    precision: str,
    watch: Stopwatch,
    budget: float,
) -> PassCost:
    """Run a batch through a block of random numbers, forward and backward.

    Args:
        model: Holds the block.
        plan: Its targets get gradients.
        index: Which block.
        batch: Sequences that run at once, and their length.
        precision: Of the passes.
        watch: Times.
        budget: Seconds.
    """
    samples, length = batch
    hidden_size = model.config.hidden_size
    weights = sum(target.weights for target in plan.blocks[index])

    def operations(tokens: int) -> float:
        return float(tokens * weights + 2 * tokens * min(tokens, length) * hidden_size)

    with model.block(index) as block:
        block.requires_grad_(True)
        run = _block_pass(model, block, index, precision, watch)
        first = min(length, FIRST_TOKENS)
        run(1, first, True)
        pace = watch.once(lambda: run(1, first, True)) / operations(first)
        tokens = affordable_tokens(samples * length, lambda number: 3 * pace * operations(number), budget)
        shape = (max(1, tokens // length), min(tokens, length))
        grown = operations(length) * samples / (operations(shape[1]) * shape[0])
        kept = saved_bytes_of(lambda: run(*shape, False), block.parameters())
        peak = peak_bytes_of(lambda: run(*shape, True), watch.device)
        with kept_freed_memory():
            backward = watch.typical(lambda: run(*shape, True))
            block.requires_grad_(False)
            with torch.no_grad():
                forward = watch.typical(lambda: run(*shape, False))
    share = length / (shape[0] * shape[1])
    return PassCost(forward * grown / samples, backward * grown / samples, kept * share, peak * share)


def _block_pass(
    model: TrialModel, block: nn.Module, index: int, precision: str, watch: Stopwatch
) -> Callable[[int, int, bool], Tensor]:
    """Return what runs a block on random hidden states: so many sequences of so many tokens, and back or not."""
    made: dict[tuple[int, int], tuple[Callable[[Tensor], Tensor], Tensor]] = {}

    def inputs(samples: int, length: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        ids = torch.zeros(1, length, dtype=torch.int64)
        call = model.calls(ids, None)[index]
        hidden = torch.randn(samples, length, model.config.hidden_size, device=watch.device)
        try:
            with torch.no_grad():
                call.run(block, hidden)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return lambda batch: torch.cat([call.run(block, one) for one in batch.split(1)]), hidden
        return lambda batch: call.run(block, batch), hidden

    def run(samples: int, length: int, back: bool) -> Tensor:
        if (samples, length) not in made:
            made[samples, length] = inputs(samples, length)
        forward, hidden = made[samples, length]
        with torch.set_grad_enabled(back or torch.is_grad_enabled()), precision_context(watch.device, precision):
            outputs = forward(hidden)
        if back:
            (outputs.float() - hidden).square().mean().backward()
        return outputs

    return run


def measure_head(
    model: TrialModel, settings: DistillationSettings, tokens: int, watch: Stopwatch
) -> tuple[PassCost, bool]:
    """Compute the losses on logits of a random output layer.

    Args:
        model: Has the shapes.
        settings: Name the losses.
        tokens: Of a micro-batch.
        watch: Times.

    Returns:
        Seconds a token, and whether all losses weigh all tokens alike.
    """
    hidden_size, vocabulary = model.config.hidden_size, model.config.vocab_size
    tokens = min(tokens, max(FIRST_TOKENS, settings.chunk_elements // vocabulary))
    layer = torch.empty(vocabulary, hidden_size, device=watch.device).normal_(0, 0.02)
    objective = Objective(
        build_losses(registry(), settings), lambda hidden: hidden @ layer.T, settings.chunk_elements, vocabulary
    )

    def drawn() -> Tensor:
        return torch.randn(tokens, hidden_size, device=watch.device)

    blocks = len(model.decoder.blocks) if objective.needs_hidden_states else 0
    labels = torch.zeros(tokens, dtype=torch.int64, device=watch.device)
    batch = Tokens(drawn(), drawn(), labels, (drawn(),) * blocks, (drawn(),) * blocks)

    def backward() -> None:
        leaves = batch.as_leaves()
        measured = objective.measure(leaves)
        objective.backward(leaves, measured.sums[:, 1], measured)

    backward()
    peak = float(peak_bytes_of(backward, watch.device))
    with kept_freed_memory():
        seconds = watch.typical(lambda: objective.sums(batch)), watch.typical(backward)
    return PassCost(*seconds, peak, peak).times(1 / tokens), objective.uniform
