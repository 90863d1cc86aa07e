"""What can multiply by a layer: lowbit's kernels on its packed weight, and torch on its dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from layer_cost import make_layer, needed, parse_shape, quantizer_of
from torch import Tensor
from torch.nn.functional import linear

from lowbit.contracts import Kernel, PackedWeight, QuantizedWeight, StatisticsNeed
from lowbit.modeling.kernel_choice import workload_of
from lowbit.modeling.layouts import get_packer
from lowbit.recipe import resolve_recipe
from lowbit.registry import registry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_COPIES = 64
FLOAT32_LIMIT = 1e-5
"""Largest difference in float32, over the norms of the weight's row and of the activations."""
SPREAD = 8
"""Standard deviations that the sum of roundings of single products may be away from zero."""
ROWS_AT_A_TIME = 1024
PLAIN_LAYER_SCALE = 0.02

Call = Callable[[], Tensor]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """One way to multiply by a layer.

    Args:
        name: What multiplies.
        kind: `kernel`, `torch` or `peer`.
        weights: What the weight is stored as.
        dtype: Of the activations, a key of `DTYPES`.
        bytes: Of one copy of the weight as it is stored.
        calls: Takes activations [rows, in] and returns one call for each copy of the weight.
        matrix: Returns the weight that this contender stands for, float32 [out, in], on the CPU.
        exact: Whether its results must agree with that weight up to the roundings of the dtype.
    """

    name: str
    kind: str
    weights: str
    dtype: str
    bytes: int
    calls: Callable[[Tensor], Sequence[Call]]
    matrix: Callable[[], Tensor]
    exact: bool = True


@dataclass(frozen=True)
class Absent:
    """A contender that does not take part, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Layer:
    """A quantized layer and where it is multiplied.

    Args:
        shape: `OUTxIN`.
        method: What quantized it.
        quantized: The weight.
        packed: The weight in the layout of its packer, on the CPU.
        dense: The same as float32 [out, in], on the CPU.
        device: Of weights and activations.
        cache_bytes: Of the last cache; the copies of a weight together are larger.
        threads: Of every contender on a CPU.
    """

    shape: str
    method: str
    quantized: QuantizedWeight
    packed: PackedWeight
    dense: Tensor = field(repr=False)
    device: torch.device
    cache_bytes: int
    threads: int

    def copies(self, size: int) -> int:
        """Return how many weights of `size` bytes are twice as large as the cache, two at least."""
        return min(MOST_COPIES, max(2, -(-2 * self.cache_bytes // max(1, size))))


def quantized_layer(
    shape: str, method: str, packer: str | None, device: torch.device, cache_bytes: int, threads: int, seed: int
) -> Layer:
    """Quantize Gaussian weights by a method, and pack them.

    Args:
        shape: `OUTxIN`.
        method: Name of a registered method.
        packer: Name of a packer, or `None` for the method's own.
        device: Where to multiply.
        cache_bytes: Of the last cache.
        threads: Of every contender on a CPU.
        seed: Decides the weights.
    """
    quantizer = quantizer_of(method)
    generator = torch.Generator().manual_seed(seed)
    if quantizer.needs is StatisticsNeed.NONE:
        weight = torch.randn(parse_shape(shape), generator=generator).mul_(PLAIN_LAYER_SCALE)
        quantized = quantizer.quantize(weight, None, generator)
    else:
        weight, statistics = make_layer(shape, seed)
        quantized = quantizer.quantize(weight, needed(quantizer, statistics), generator)
    chosen = packer or resolve_recipe(registry(), method).packer.name
    packed = get_packer(chosen).pack(quantized)
    return Layer(shape, method, quantized, packed, quantized.dequantize(), device, cache_bytes, threads)


def kernel_contenders(layer: Layer, dtypes: Sequence[str]) -> Iterator[Contender | Absent]:
    """Yield every registered kernel with every dtype, or why it does not serve the layer."""
    for made in registry().kernels():
        for dtype in dtypes:
            workload = workload_of(layer.packed.spec, layer.packed.packer, layer.device, DTYPES[dtype])
            kernel: Kernel = made()
            support = kernel.supports(workload)
            if support.served:
                yield _kernel_contender(layer, kernel, dtype)
            else:
                yield Absent(f"{kernel.name} ({dtype})", support.reason)


def _kernel_contender(layer: Layer, kernel: Kernel, dtype: str) -> Contender | Absent:
    packed, size = layer.packed, sum(tensor.nbytes for tensor in layer.packed.tensors.values())
    workload = workload_of(packed.spec, packed.packer, layer.device, DTYPES[dtype])
    try:
        products = [kernel.bind(_copy(packed, layer.device), workload) for _ in range(layer.copies(size))]
    except Exception as error:  # whatever a kernel's compiler raises
        return Absent(f"{kernel.name} ({dtype})", f"could not be made ready: {type(error).__name__}: {error}")

    def calls(x: Tensor) -> list[Call]:
        return [partial(product, x, None) for product in products]

    weights = f"{packed.spec.format}, {packed.packer}"
    exact = "int8" not in kernel.name
    return Contender(kernel.name, "kernel", weights, dtype, size, calls, lambda: layer.dense, exact)


def copy_of(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor in memory of its own on a device."""
    return torch.empty_like(tensor, device=device).copy_(tensor)


def _copy(packed: PackedWeight, device: torch.device) -> PackedWeight:
    """Return the weight in memory of its own on a device."""
    tensors = {name: copy_of(tensor, device) for name, tensor in packed.tensors.items()}
    return PackedWeight(packed.spec, packed.packer, tensors)


def torch_contenders(layer: Layer, dtypes: Sequence[str]) -> Iterator[Contender]:
    """Yield torch's dense linear layer in each dtype."""
    for dtype in dtypes:
        size = layer.dense.numel() * DTYPES[dtype].itemsize
        empty = torch.empty_like(layer.dense, dtype=DTYPES[dtype], device=layer.device)
        weights = [torch.empty_like(empty).copy_(layer.dense) for _ in range(layer.copies(size))]
        calls = calls_of([partial(linear, weight=weight) for weight in weights])
        yield Contender("torch linear", "torch", dtype, dtype, size, calls, lambda: layer.dense)


def calls_of(products: Sequence[Product]) -> Callable[[Tensor], list[Call]]:
    """Return what makes calls of products that only lack their activations."""

    def calls(x: Tensor) -> list[Call]:
        return [partial(product, x) for product in products]

    return calls


@dataclass(frozen=True)
class Agreement:
    """How far a result is from float64.

    Args:
        error: Largest difference over the norms of the weight's row and of the activations.
        agrees: Whether every difference is within what the dtype's roundings explain.
    """

    error: float
    agrees: bool


def agreement(result: Tensor, matrix: Tensor, x: Tensor) -> Agreement:
    """Compare a result with the product in float64.

    Args:
        result: [rows, out].
        matrix: The weight, [out, in].
        x: Activations in the dtype of the product, [rows, in].
    """
    epsilon = 0.0 if x.dtype == torch.float32 else torch.finfo(x.dtype).eps
    exact_x, norm_x = x.cpu().double(), x.cpu().double().norm(dim=1, keepdim=True)  # [rows, in], [rows, 1]
    worst, agrees = 0.0, True
    for start in range(0, matrix.shape[0], ROWS_AT_A_TIME):
        rows = matrix[start : start + ROWS_AT_A_TIME].double()
        exact = exact_x @ rows.T  # [rows, some of out]
        norms = norm_x * rows.norm(dim=1)
        difference = (result[:, start : start + ROWS_AT_A_TIME].cpu().double() - exact).abs()
        limit = FLOAT32_LIMIT * norms + epsilon * (exact.abs() + SPREAD * norms / matrix.shape[1] ** 0.5)
        worst = max(worst, float((difference / norms.clamp(min=torch.finfo(torch.float64).tiny)).max()))
        agrees = agrees and bool((difference <= limit).all())
    return Agreement(worst, agrees)
