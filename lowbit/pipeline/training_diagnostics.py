"""What a distillation is measured by beside its loss: deviation from the teacher, outputs of single layers.

Block-wise reconstruction alone has no such numbers: no whole student ever lies in memory there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.contracts import DistillationSettings, QuantizedWeight
from lowbit.distillation.deviation import logit_chunks, measure_deviation, vocabulary_parts
from lowbit.distillation.student import Head, precision_context
from lowbit.distillation.trainer import Distillation, held_out_samples
from lowbit.models import WeightTarget, read_weight
from lowbit.quantization.plan import QuantizationPlan
from lowbit.registry import registry

DEVIATION_SAMPLES = 8
OUTPUT_SAMPLES = 4
OUTPUT_TOKENS = 256


class TrainingDiagnostics:
    """Looks at a student on a few of the sequences that its training holds out.

    Every process must take part and sees the same sequences, so that a student that is spread over processes can run.
    Both models run in the precision that the training runs in.

    Args:
        work: Student, teacher and tokens of the distillation.
        head: Turns hidden states of both models into logits.
        settings: Of the distillation.
        vocabulary: Columns of the logits.
        device: Where the models are.
    """

    def __init__(
        self, work: Distillation, head: Head, settings: DistillationSettings, vocabulary: int, device: torch.device
    ) -> None:
        held_out = held_out_samples(len(work.tokens), settings)
        self._tokens = work.tokens[-held_out:][:DEVIATION_SAMPLES].to(device)  # [samples, length]
        self._parts = vocabulary_parts(work.tokens[:-held_out, 1:], vocabulary)
        self._samples = settings.sequences_at_once()
        self._chunk_tokens = max(1, settings.chunk_elements // vocabulary)
        self._work = work
        self._head = head
        self._context = partial(precision_context, device, settings.precision)

    def deviation(self) -> dict[str, Any]:
        """Return how the student, as it is now, deviates from the teacher, as plain JSON values."""
        work, sizes = self._work, (self._samples, self._chunk_tokens)
        chunks = logit_chunks(work.student, work.teacher, self._head, self._tokens, *sizes, self._context)
        return measure_deviation(chunks, self._parts).to_dict()

    @torch.no_grad()
    def outputs(
        self, student: nn.Module, teacher: nn.Module, plan: QuantizationPlan, frozen: Mapping[str, QuantizedWeight]
    ) -> dict[str, dict[str, float]]:
        """Return plugins' numbers about the outputs of every trained layer on what enters it in the student.

        Experts of a fused parameter are left out: each sees only the tokens that were routed to it.

        Args:
            student: The model whose body was trained.
            teacher: The model that it was trained towards.
            plan: Where the weights are.
            frozen: Trained weights by target name.

        Returns:
            Numbers by name, by target name; what saw no token is absent.
        """
        found: dict[str, dict[str, float]] = {}
        handles = []
        for target in plan.targets():
            if target.name in frozen and target.expert is None:
                look = _observer(target, frozen[target.name], teacher, found)
                handles.append(student.get_submodule(target.module).register_forward_pre_hook(look))
        try:
            with self._context():
                self._work.student(self._tokens[:OUTPUT_SAMPLES])
        finally:
            for handle in handles:
                handle.remove()
        return found


def _observer(
    target: WeightTarget, quantized: QuantizedWeight, teacher: nn.Module, found: dict[str, dict[str, float]]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """Return a hook that asks the plugins as soon as a layer runs, so that one layer's inputs are held at a time."""

    def look(_module: nn.Module, args: tuple[Any, ...]) -> None:
        """Ask about the layer's inputs, once."""
        inputs: Tensor = args[0].detach().flatten(0, -2)  # [tokens, in]
        if target.name in found or not len(inputs):
            return
        inputs = _spread(inputs).float()
        weight = read_weight(teacher, target).to(inputs.device).float()
        with torch.autocast(inputs.device.type, enabled=False):
            found[target.name] = output_diagnostics(quantized.to(inputs.device), weight, inputs)

    return look


def _spread(inputs: Tensor) -> Tensor:
    """Return at most `OUTPUT_TOKENS` rows, evenly spaced."""
    if len(inputs) <= OUTPUT_TOKENS:
        return inputs
    return inputs[torch.linspace(0, len(inputs) - 1, OUTPUT_TOKENS, device=inputs.device).long()]


def output_diagnostics(quantized: QuantizedWeight, weight: Tensor, inputs: Tensor) -> dict[str, float]:
    """Return every plugin's numbers about one trained weight's outputs; see `lowbit_output_diagnostics`."""
    merged: dict[str, float] = {}
    for numbers in registry().hook.lowbit_output_diagnostics(quantized=quantized, weight=weight, inputs=inputs):
        merged.update(numbers)
    return merged
