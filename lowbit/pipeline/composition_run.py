"""Runs allowed combinations on small matrices: one training step, packing, and a product through the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from lowbit.contracts import DistillationLoss, PackedWeight, Parametrization, QuantizedWeight, WeightQuantizer
from lowbit.distillation.objective import Objective, Tokens
from lowbit.errors import LowbitError
from lowbit.modeling.kernel_choice import workload_of
from lowbit.modeling.layouts import get_packer, unpack
from lowbit.pipeline.composition import NO_LOSS, Combination
from lowbit.pipeline.quantizer_trial import describe, quantize_trial, trial_matrices
from lowbit.recipe import build_quantizer
from lowbit.recipe.resolve import loss_config
from lowbit.registry import Registry

TOKENS, VOCABULARY = 48, 40
STEP_SIZE = 1e-3
# A kernel may round activations to eight bits, which costs about 1 %; a wrong product is off by 100 %.
TOLERANCE = 0.03


@dataclass(frozen=True)
class Outcome:
    """How a combination fared.

    Args:
        combination: What was run.
        problem: What went wrong; empty if nothing did.
    """

    combination: Combination
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong."""
        return not self.problem


def run_combinations(registry: Registry, found: Iterable[Combination]) -> Iterator[Outcome]:
    """Run every allowed combination, yielding outcomes as they are known.

    A weight is quantized, trained for one step through the loss, if there is one, packed, unpacked to the same bits,
    and multiplied by the kernel; the product must be that of the dequantized weight.

    Args:
        registry: Where the parts are looked up.
        found: The combinations; refused ones are left out.
    """
    allowed = [combination for combination in found if combination.allowed]
    for _, group in groupby(allowed, key=lambda one: (one.variant.label, one.loss)):
        together = list(group)
        try:
            weights = _weights(registry, together[0])
        except (Exception, SystemExit) as error:  # whatever a plugin raises
            yield from (Outcome(combination, describe(error)) for combination in together)
            continue
        for combination in together:
            yield Outcome(combination, _problem(registry, combination, weights))


def _problem(registry: Registry, combination: Combination, weights: dict[str, QuantizedWeight]) -> str:
    try:
        _multiply(registry, combination, weights)
    except (Exception, SystemExit) as error:  # whatever a plugin raises
        return describe(error)
    return ""


def _weights(registry: Registry, combination: Combination) -> dict[str, QuantizedWeight]:
    """Quantize the trial matrices, train each for one step if there is a loss, and return them by format."""
    variant = combination.variant
    quantizer = build_quantizer(registry, {"name": variant.quantizer, **variant.options})
    made: dict[str, QuantizedWeight] = {}
    for matrix in trial_matrices():
        weight = quantize_trial(quantizer, matrix)
        if combination.loss != NO_LOSS:
            kind = registry.distillation_loss(combination.loss)
            loss = kind(loss_config(kind, {}))
            weight = _trained(quantizer, matrix.to(combination.device), weight.to(combination.device), loss)
        made.setdefault(weight.format, weight.to(combination.device))
    return made


def _trained(
    quantizer: WeightQuantizer, matrix: Tensor, start: QuantizedWeight, loss: DistillationLoss
) -> QuantizedWeight:
    """Train one matrix for a step against the full-precision one, and freeze it.

    The student's only block is the matrix; an output layer of random numbers follows it.
    """
    latent = nn.Parameter(matrix.clone())  # [out, in]
    parametrization = quantizer.parametrize(matrix, start).to(matrix.device)
    latent.requires_grad_(parametrization.trains_latent_weight)
    trained = [part for part in (latent, *parametrization.parameters()) if part.requires_grad]
    before = [part.detach().clone() for part in trained]
    _step(parametrization, latent, matrix, loss)
    if all(torch.equal(old, new.detach()) for old, new in zip(before, trained, strict=True)):
        raise LowbitError("one training step changed nothing")
    output = parametrization(latent).detach()
    frozen = quantizer.freeze(latent.detach(), parametrization)
    if not torch.equal(frozen.dequantize(), output):
        raise LowbitError("the frozen weight is not what the parametrization returned")
    return frozen


def _step(parametrization: Parametrization, latent: nn.Parameter, matrix: Tensor, loss: DistillationLoss) -> None:
    """Take one optimizer step along the gradient of the loss."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(TOKENS, matrix.shape[1], generator=generator).to(matrix.device)  # [tokens, in]
    head = torch.randn(VOCABULARY, matrix.shape[0], generator=generator).to(matrix.device)  # [vocabulary, out]
    head = head / matrix.norm()
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator).to(matrix.device)
    student, teacher = inputs @ parametrization(latent).T, inputs @ matrix.T  # [tokens, out]
    objective = Objective([(loss, 1.0)], lambda hidden: hidden @ head.T, 2**20, VOCABULARY)
    tokens = Tokens(student, teacher, labels, (student,), (teacher,))
    measured = objective.measure(tokens)
    objective.backward(tokens, measured.sums[:, 1], measured)
    trained = [part for part in (latent, *parametrization.parameters()) if part.requires_grad]
    for part in trained:
        if part.grad is not None and not bool(part.grad.isfinite().all()):
            raise LowbitError("the gradient of the loss is not finite")
    torch.optim.AdamW(trained, lr=STEP_SIZE, weight_decay=0).step()
    with torch.no_grad():
        parametrization.project()


def _multiply(registry: Registry, combination: Combination, weights: dict[str, QuantizedWeight]) -> None:
    """Pack a weight, and multiply by it.

    Raises:
        LowbitError: It came out in another format, lost a bit, or the product is wrong.
    """
    if combination.format not in weights:
        raise LowbitError(f"the weight came out as {', '.join(weights)}, not as {combination.format}")
    weight, device = weights[combination.format], torch.device(combination.device)
    packed = get_packer(combination.packer).pack(weight)
    _require_same(unpack(packed), weight)
    tensors = {name: tensor.to(device) for name, tensor in packed.tensors.items()}
    packed = PackedWeight(packed.spec, packed.packer, tensors)
    dtype: torch.dtype = getattr(torch, combination.dtype)
    kernel = next(kernel for kernel in registry.kernels() if kernel.name == combination.kernel)()
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(3)).to(device, dtype)
    bias = torch.linspace(-1, 1, weight.shape[0]).to(device, dtype)
    product = kernel.bind(packed, workload_of(packed.spec, packed.packer, device, dtype))(x, bias).float()
    expected = x.float() @ weight.dequantize().to(device).T + bias.float()
    error = float((product - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise LowbitError(f"the product is off by {error:.1%} of its norm; at most {TOLERANCE:.0%} were expected")


def _require_same(first: QuantizedWeight, second: QuantizedWeight) -> None:
    others = second.tensors()
    wrong = [name for name, tensor in first.tensors().items() if not torch.equal(tensor, others[name])]
    if first.spec() != second.spec() or wrong:
        raise LowbitError(f"packing and unpacking changed {', '.join(wrong) or 'the declaration'}")
