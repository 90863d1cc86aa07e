"""Puts trainable fake-quantized weights in the place of a model's parameters, and takes the trained ones out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowbit.contracts import Parametrization, QuantizedWeight, WeightQuantizer
from lowbit.distillation.sharding import as_split_as, whole
from lowbit.errors import LowbitError
from lowbit.models import WeightTarget, read_weight
from lowbit.quantization.block_training import TrainableWeight

LATENT_WEIGHT = "latent_weight"


class ParameterParametrization(nn.Module):
    """The parametrizations of one parameter of a module: one matrix, stored as it is or transposed, or many experts.

    Args:
        parts: One parametrization a matrix, in the order of the experts.
        transposed: Whether the parameter is stored as [in, out].
        fused: Whether the parameter has a first dimension of experts.
    """

    def __init__(self, parts: Sequence[Parametrization], transposed: bool, fused: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._transposed = transposed
        self._fused = fused

    def forward(self, stored: Tensor) -> Tensor:
        """Return the fake-quantized parameter in its stored shape."""
        matrices = stored.unbind(0) if self._fused else (stored,)
        made = [self._one(part, matrix) for part, matrix in zip(self.parts, matrices, strict=True)]
        return torch.stack(made) if self._fused else made[0]

    def _one(self, part: nn.Module, matrix: Tensor) -> Tensor:
        # Automatic mixed precision must not reach into a parametrization: scales and levels are float32.
        with torch.autocast(matrix.device.type, enabled=False):
            quantized: Tensor = part(matrix.T if self._transposed else matrix)
        return quantized.T if self._transposed else quantized


class ParametrizedWeights:
    """The trainable weights of a model or block, each behind a parametrization of its parameter.

    Weights and parametrizations are float32.

    Args:
        model: The module that target names refer to.
        weights: What to train; of fused experts, all of a parameter.
        state: Trained latent weights and parameters to start from, by the names that `state` gives them.
        unquantized: Names of the model's parameters that are trained as they are, such as those of norms.

    Raises:
        LowbitError: A quantizer offers no training.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[TrainableWeight],
        state: Mapping[str, Tensor],
        unquantized: Sequence[str] = (),
    ) -> None:
        self._model = model
        self._unquantized = tuple(unquantized)
        for parameter in self.unquantized().values():
            parameter.requires_grad_(True)
        self._weights = list(weights)
        self._parts: dict[str, Parametrization] = {}
        for weight in self._weights:
            require_trainable(weight.quantizer)
            matrix = read_weight(model, weight.target).float()
            self._parts[weight.target.name] = weight.quantizer.parametrize(matrix, weight.quantized).to(matrix.device)
        for group in _by_parameter(self._weights).values():
            self._attach(group)
        self.load(state)

    def _attach(self, group: list[TrainableWeight]) -> None:
        """Register the parametrizations of the weights that share one parameter."""
        target = group[0].target
        parts = [self._parts[weight.target.name] for weight in group]
        module = self._model.get_submodule(target.module)
        latent = nn.Parameter(getattr(module, target.parameter).detach().float())
        module.register_parameter(target.parameter, latent)
        latent.requires_grad_(any(part.trains_latent_weight for part in parts))
        adapter = ParameterParametrization(parts, target.transposed, target.expert is not None)
        parametrize.register_parametrization(module, target.parameter, adapter, unsafe=True)

    def _stored(self, target: WeightTarget) -> nn.Parameter:
        """Return the parameter that holds a target's latent weight."""
        module: Any = self._model.get_submodule(target.module)
        stored: nn.Parameter = module.parametrizations[target.parameter].original
        return stored

    def latent_weights(self) -> dict[str, nn.Parameter]:
        """Return the latent weights that are trained, by name; experts of one parameter are one tensor."""
        stored = {weight.target.parameter_name: self._stored(weight.target) for weight in self._weights}
        return {f"{name}.{LATENT_WEIGHT}": tensor for name, tensor in stored.items() if tensor.requires_grad}

    def scales(self) -> dict[str, nn.Parameter]:
        """Return the parametrizations' own parameters by name."""
        return {
            f"{name}.{key}": parameter
            for name, part in self._parts.items()
            for key, parameter in part.named_parameters()
        }

    def unquantized(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained as they are, by name."""
        return {name: self._model.get_parameter(name) for name in self._unquantized}

    def unquantized_values(self) -> dict[str, Tensor]:
        """Return copies of these parameters, whole and on the CPU; every process must ask at the same time."""
        return {name: whole(tensor.detach()).to("cpu", copy=True) for name, tensor in self.unquantized().items()}

    @torch.no_grad()
    def settle(self, share: float) -> None:
        """Move every latent weight towards what it is quantized to, a share of the way; no quantized weight changes.

        Training leaves many latent weights beside the threshold between two levels, where the next small step of
        anything flips them: each one's side was learned, but not its distance.
        """
        for group in _by_parameter(self._weights).values():
            target = group[0].target
            stored = self._stored(target)
            if stored.requires_grad:
                module: Any = self._model.get_submodule(target.module)
                stored.lerp_(getattr(module, target.parameter).to(stored.dtype), share)

    def project(self) -> None:
        """Call every parametrization's `project`."""
        for part in self._parts.values():
            part.project()

    def state(self) -> dict[str, Tensor]:
        """Return copies of everything that is trained, by name, on the CPU."""
        return {name: whole(tensor.detach()).to("cpu", copy=True) for name, tensor in self.trained().items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put trained values back; what has no value stays as it is."""
        for name, tensor in self.trained().items():
            if name in state:
                tensor.copy_(as_split_as(state[name], tensor))

    def trained(self) -> dict[str, nn.Parameter]:
        """Return everything that is trained, by name."""
        return self.latent_weights() | self.scales() | self.unquantized()

    @torch.no_grad()
    def freeze(self) -> dict[str, QuantizedWeight]:
        """Return every weight as it is quantized now, by target name."""
        frozen = {}
        for group in _by_parameter(self._weights).values():
            stored = whole(self._stored(group[0].target).detach())
            for weight in group:
                name, latent = weight.target.name, _matrix(stored, weight.target)
                frozen[name] = weight.quantizer.freeze(latent.contiguous(), self._parts[name])
        return {weight.target.name: frozen[weight.target.name] for weight in self._weights}

    def detach(self) -> None:
        """Take the parametrizations out again; each parameter holds its latent weight."""
        for group in _by_parameter(self._weights).values():
            target = group[0].target
            module = self._model.get_submodule(target.module)
            parametrize.remove_parametrizations(module, target.parameter, leave_parametrized=False)


def require_trainable(quantizer: WeightQuantizer) -> None:
    """Check that a quantizer can be trained.

    Raises:
        LowbitError: It offers no training.
    """
    if not quantizer.is_trainable():
        raise LowbitError(
            f"quantizer {quantizer.name} offers no training: it has no `parametrize`; leave out `reconstruction` and "
            "`distillation`, or choose another quantizer"
        )


def _matrix(stored: Tensor, target: WeightTarget) -> Tensor:
    """Return a target's matrix as a view of the parameter that holds it, [out, in]."""
    matrix = stored if target.expert is None else stored[target.expert]
    return matrix.T if target.transposed else matrix


def _by_parameter(weights: Sequence[TrainableWeight]) -> dict[str, list[TrainableWeight]]:
    """Group weights by the parameter that holds them, in the order of the experts."""
    groups: dict[str, list[TrainableWeight]] = {}
    for weight in weights:
        groups.setdefault(weight.target.parameter_name, []).append(weight)
    return {name: sorted(group, key=lambda w: w.target.expert or 0) for name, group in groups.items()}
