"""Weight targets: the matrices that are quantized, whatever module they live in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowbit.models.experts import is_fused_experts_module


@dataclass(frozen=True)
class WeightTarget:
    """One matrix to quantize.

    Args:
        name: Unique name: the module's for a linear layer, `<module>.<parameter>.<expert>` for one of fused experts.
        module: Dotted name of the module that owns the parameter.
        parameter: Name of the parameter in that module.
        expert: Position in a fused three-dimensional parameter, or `None`.
        transposed: Whether the parameter is stored as [in, out].
        out_features: Rows of the matrix.
        in_features: Columns of the matrix.
    """

    name: str
    module: str
    parameter: str
    expert: int | None
    transposed: bool
    out_features: int
    in_features: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    @property
    def parameter_name(self) -> str:
        """Dotted name of the parameter in the model."""
        return f"{self.module}.{self.parameter}"


def find_targets(block: nn.Module, block_name: str) -> tuple[WeightTarget, ...]:
    """List the matrices of a decoder block that can be quantized: linear layers and fused experts.

    A parameter that two modules share appears once, under the first of them.

    Args:
        block: The block; its parameters may be on the meta device.
        block_name: The block's dotted name in the model.
    """
    targets: list[WeightTarget] = []
    seen: set[int] = set()
    modules = dict(block.named_modules(prefix=block_name))
    for name, module in modules.items():
        if is_router(name, modules.get(name.rpartition(".")[0])):
            continue
        found = list(_targets_of(name, module))
        targets += [target for target, parameter in found if id(parameter) not in seen]
        seen.update(id(parameter) for _, parameter in found)
    return tuple(targets)


def _targets_of(name: str, module: nn.Module) -> Iterator[tuple[WeightTarget, Tensor]]:
    if isinstance(module, nn.Linear | Conv1D):
        transposed = isinstance(module, Conv1D)
        rows, columns = module.weight.shape[::-1] if transposed else module.weight.shape
        yield WeightTarget(name, name, "weight", None, transposed, rows, columns), module.weight
        return
    if not is_fused_experts_module(module):
        return
    experts: Any = module
    for parameter_name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() != 3:
            continue
        rows, columns = parameter.shape[:0:-1] if experts.is_transposed else parameter.shape[1:]
        for expert in range(parameter.shape[0]):
            target_name = f"{name}.{parameter_name}.{expert}"
            yield (
                WeightTarget(target_name, name, parameter_name, expert, experts.is_transposed, rows, columns),
                parameter,
            )


def is_router(name: str, parent: nn.Module | None) -> bool:
    """Say whether a linear layer chooses experts; it is tiny, decides a lot, and is left as it is."""
    return name.rsplit(".", 1)[-1] in ("gate", "router") and hasattr(parent, "experts")


def other_matrices(block: nn.Module, block_name: str) -> dict[str, int]:
    """Return the sizes of a block's matrices that are no weight target (routers, experts of unknown kind), by name."""
    targeted = {target.parameter_name for target in find_targets(block, block_name)}
    return {
        name: parameter.numel()
        for name, parameter in block.named_parameters(prefix=block_name)
        if parameter.dim() >= 2 and name not in targeted and not name.endswith("bias")
    }


def read_weight(model: nn.Module, target: WeightTarget) -> Tensor:
    """Return the matrix of a target as a view, [out, in]."""
    parameter: Tensor = getattr(model.get_submodule(target.module), target.parameter)
    matrix = parameter.detach() if target.expert is None else parameter.detach()[target.expert]
    return matrix.T if target.transposed else matrix


def write_weight(model: nn.Module, target: WeightTarget, matrix: Tensor) -> None:
    """Overwrite the matrix of a target with [out, in], in place."""
    read_weight(model, target).copy_(matrix)
