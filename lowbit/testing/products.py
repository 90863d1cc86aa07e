"""Whether a kernel's product is that of the dense matrix, within what its arithmetic allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.contracts import Kernel, Packer, QuantizedWeight, Workload
from lowbit.packing import from_row_tiles
from lowbit.testing.failure import ANY_ERROR, ConformanceError
from lowbit.testing.matrices import gaussian
from lowbit.testing.sameness import tensor_difference

TOLERANCE = Kernel.tolerance
"""Largest error of an exact kernel's product in float32, as a share of |row| |x|."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Activations:
    """Activations that a kernel must multiply, and the code that makes them."""

    x: Tensor
    code: str


def workload_on_cpu(weight: QuantizedWeight, packer: Packer, dtype: torch.dtype = torch.float32) -> Workload:
    """Describe products with a weight on the CPU."""
    return Workload(weight.spec(), packer, type(weight), CPU, dtype)


def activations(columns: int, dtype: torch.dtype) -> Iterator[Activations]:
    """Yield activations of several shapes: single, many, three dimensions, strided, none."""
    shapes = ((columns,), (1, columns), (5, columns), (17, columns), (2, 33, columns), (0, columns))
    for shape in shapes:
        yield Activations(gaussian(*shape, seed=3).to(dtype), f"x = gaussian(*{shape}, seed=3).to({dtype})")
    wide = gaussian(columns, 5, seed=3).to(dtype)
    yield Activations(wide.T, f"x = gaussian({columns}, 5, seed=3).to({dtype}).T  # not contiguous")
    padded = gaussian(5, columns + 3, seed=3).to(dtype)
    code = f"x = gaussian(5, {columns + 3}, seed=3).to({dtype})[:, 1 : {columns + 1}]  # rows apart"
    yield Activations(padded[:, 1 : columns + 1], code)


def allowed_error(dense: Tensor, x: Tensor, bias: Tensor | None, expected: Tensor, tolerance: float) -> Tensor:
    """Return the largest error of each element of a product, float64 [..., out].

    In float32 that is a share of |row| |x|; in half types, as much as rounding weights, sums and result makes.

    Args:
        dense: float64 [out, in].
        x: Activations [..., in].
        bias: [out] or `None`.
        expected: The product in float64 [..., out].
        tolerance: In float32, the share of |row| |x|.
    """
    size: Tensor = torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True) * torch.linalg.vector_norm(dense, dim=-1)
    if bias is not None:
        size = size + bias.double().abs()
    allowed: Tensor = tolerance * size + 1e-30
    if x.dtype == torch.float32:
        return allowed
    step = torch.finfo(x.dtype).eps
    rounding: Tensor = 2 * step * (size + expected.abs())
    return rounding + max(tolerance - TOLERANCE, 0) * size + 1e-30


def product_error(
    kernel: Kernel, weight: QuantizedWeight, packer: Packer, given: Activations, with_bias: bool, tolerance: float
) -> str:
    """Multiply through a kernel, and say how the result is wrong; empty if it is right."""
    x, dense = given.x, weight.dequantize().double()
    bias = gaussian(dense.shape[0], seed=4).to(x.dtype) if with_bias else None
    workload = workload_on_cpu(weight, packer, x.dtype)
    with torch.inference_mode(False):
        product = kernel.bind(packer.pack(weight), workload)
    result = product(x, bias)
    expected = torch.nn.functional.linear(x.double(), dense, None if bias is None else bias.double())
    if result.shape != expected.shape or result.dtype != x.dtype:
        return f"{result.dtype} {tuple(result.shape)}, not {x.dtype} {tuple(expected.shape)}"
    error = (result.double() - expected).abs()
    allowed = allowed_error(dense, x, bias, expected, tolerance)
    wrong = ~(error <= allowed)  # also where it is not a number
    if not bool(wrong.any()):
        return ""
    worst = int(torch.where(wrong, error / allowed, 0).nan_to_num(torch.inf).argmax())
    found, right = result.flatten()[worst].item(), expected.flatten()[worst].item()
    share = error.flatten()[worst].item() / allowed.flatten()[worst].item()
    return (
        f"{int(wrong.sum())} of {wrong.numel()} products are wrong; the worst is {found:.7g}, not {right:.7g}: "
        f"{share:.3g} times the error that is allowed"
    )


def require_product(
    kernel: Kernel, weight: QuantizedWeight, packer: Packer, given: Activations, reproduce: str, tolerance: float
) -> None:
    """Check a product with and without a bias.

    Raises:
        ConformanceError: It is wrong, or fails.
    """
    for with_bias in (False, True):
        bias = f"bias = gaussian({weight.shape[0]}, seed=4).to(x.dtype)" if with_bias else "bias = None"
        try:
            told = product_error(kernel, weight, packer, given, with_bias, tolerance)
        except ANY_ERROR as error:  # whatever the code under test raises
            told = f"{type(error).__name__}: {error}"
        if told:
            raise ConformanceError(
                f"kernel {kernel.name!r} multiplies by what `dequantize()` returns, for layout {packer.name!r} within "
                f"{tolerance:g} |row| |x| in float32 and the rounding of half types",
                told,
                f"{reproduce}\n{given.code}\n{bias}\n"
                f"packer, kernel = {type(packer).__name__}(), {type(kernel).__name__}()\n"
                "workload = Workload(quantized.spec(), packer, type(quantized), torch.device('cpu'), x.dtype)\n"
                "kernel.bind(packer.pack(quantized), workload)(x, bias)",
            )


def row_tiles_fault(packer: Packer, weight: QuantizedWeight) -> str:
    """Say how the row tiles of a packed weight differ from its plane form; empty if they do not, or there are none."""
    tiles, form = packer.row_tiles(packer.pack(weight)), weight.plane_form()
    if tiles is None or form is None or len(form.parts) != 1:
        return ""
    part = form.parts[0]
    planes, scales, offsets = from_row_tiles(tiles)
    if len(planes) != len(part.planes):
        return f"{len(planes)} planes, not {len(part.planes)}"
    pairs = [(f"plane {number}", part.planes[number], plane) for number, plane in enumerate(planes)]
    pairs.append(("scales", part.scales.float(), scales.float()))
    if offsets is not None and part.offsets is not None:
        pairs.append(("offsets", part.offsets.float(), offsets.float()))
    told = (tensor_difference(name, expected, found) for name, expected, found in pairs)
    return next(filter(None, told), "")
