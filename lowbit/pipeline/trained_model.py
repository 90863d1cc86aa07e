"""The blocks of a model after its distillation, with what there is to say of each weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lowbit.contracts import LayerReport, QuantizedBlock, QuantizedWeight
from lowbit.models import WeightTarget, read_weight
from lowbit.quantization.plan import QuantizationPlan


@dataclass(frozen=True)
class TrainedModel:
    """What a distillation made of a model.

    Args:
        plan: Where the weights are.
        frozen: The trained weights, by target name.
        unquantized: Parameters that were trained as they are, by name.
        teacher: The parent.
        outputs: Plugins' numbers about each weight's outputs.
        diagnose: Returns plugins' numbers about one quantized weight.
    """

    plan: QuantizationPlan
    frozen: Mapping[str, QuantizedWeight]
    unquantized: Mapping[str, Tensor]
    teacher: Any
    outputs: Mapping[str, Mapping[str, float]]
    diagnose: Callable[[QuantizedWeight], Mapping[str, float]]

    def block(self, before: QuantizedBlock) -> QuantizedBlock:
        """Return a block as it is now; tensors that are not quantized keep their stored dtype."""
        targets = {target.name: target for target in self.plan.blocks[before.index]}
        untouched = {
            name: self.unquantized[name].to(tensor.dtype) if name in self.unquantized else tensor
            for name, tensor in before.untouched.items()
        }
        return replace(
            before,
            weights={name: self.frozen[name].to("cpu") for name in before.weights},
            untouched=untouched,
            reports=tuple(self._report(report, targets[report.name]) for report in before.reports),
            state={},
        )

    def _report(self, before: LayerReport, target: WeightTarget) -> LayerReport:
        quantized = self.frozen[target.name]
        weight = read_weight(self.teacher, target).float()
        energy = float(weight.square().sum())
        error = float((weight - quantized.dequantize()).square().sum()) / energy if energy else 0.0
        return replace(
            before,
            nominal_bits=quantized.nominal_bits,
            relative_error=error,
            diagnostics={**self.diagnose(quantized), **self.outputs.get(target.name, {})},
            untrained=before.untrained or before.diagnostics,
        )
