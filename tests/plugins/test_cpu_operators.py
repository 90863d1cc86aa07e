"""The operators of the CPU plugin: schema, tracing, gradients, other devices."""

from __future__ import annotations

import pytest
import torch
from lowbit_cpu import operators
from lowbit_cpu.self_check import random_sparse_codes
from plugins.row_tile_cases import TileCase
from torch import Tensor

CASE = TileCase(40, 100, 64, has_offsets=True, activations=3)
SHAPE = (40, 100, 64, 2, True, torch.float16)


def sparse_arguments() -> tuple[Tensor, ...]:
    sparse, _ = random_sparse_codes(40, 100, torch.Generator().manual_seed(0))
    return sparse.row_starts, sparse.columns, sparse.codes, sparse.scales, sparse.zero_points


def samples() -> dict[str, tuple[object, tuple[object, ...]]]:
    words = CASE.tiles()[0].words
    x, gradient = CASE.x().requires_grad_(), torch.randn(3, 40, requires_grad=True)
    return {
        "linear": (operators.row_tiles_linear, (x, words, None, *SHAPE)),
        "linear with bias": (operators.row_tiles_linear, (x, words, torch.randn(40, requires_grad=True), *SHAPE)),
        "linear of bfloat16": (operators.row_tiles_linear, (CASE.x(torch.bfloat16)[None], words, None, *SHAPE)),
        "linear of nothing": (operators.row_tiles_linear, (torch.zeros(2, 0, 100), words, None, *SHAPE)),
        "rounded linear": (operators.row_tiles_linear_rounded, (x, words, None, *SHAPE)),
        "transposed": (operators.row_tiles_transposed, (gradient, words, *SHAPE)),
        "sparse": (operators.sparse_linear, (x, *sparse_arguments())),
        "sparse transposed": (operators.sparse_transposed, (gradient, *sparse_arguments(), 100)),
    }


@pytest.mark.parametrize("name", list(samples()))
def test_opcheck_passes(name: str) -> None:
    operator, arguments = samples()[name]
    results = torch.library.opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_gradients_are_those_of_the_dense_matrix() -> None:
    tiles, dense = CASE.tiles()
    for activations in (3, 80):
        x = torch.randn(activations, 100, requires_grad=True)
        bias = torch.randn(40, requires_grad=True)
        weight = torch.randn(activations, 40)
        (operators.row_tiles_linear(x, tiles.words, bias, *SHAPE) * weight).sum().backward()
        torch.testing.assert_close(x.grad, (weight.double() @ dense).float(), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(bias.grad, weight.sum(0), rtol=1e-5, atol=1e-5)


def test_sparse_gradients_are_those_of_the_dense_matrix() -> None:
    sparse, length = random_sparse_codes(40, 100, torch.Generator().manual_seed(0))
    x = torch.randn(5, length, requires_grad=True)
    weight = torch.randn(5, 40)
    (operators.sparse_linear(x, *sparse_arguments()) * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight @ sparse.dense(length), rtol=1e-4, atol=1e-2)


def test_gradients_of_gradients() -> None:
    tiles, dense = CASE.tiles()
    x = CASE.x().requires_grad_()
    (gradient,) = torch.autograd.grad(
        operators.row_tiles_linear(x, tiles.words, None, *SHAPE).square().sum(), x, create_graph=True
    )
    gradient.square().sum().backward()
    exact = CASE.x().double().requires_grad_()
    (expected,) = torch.autograd.grad((exact @ dense.T).square().sum(), exact, create_graph=True)
    expected.square().sum().backward()
    assert x.grad is not None
    assert float((x.grad - exact.grad).norm() / exact.grad.norm()) < 1e-5


def test_without_a_compiler_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, _ = CASE.tiles()
    bias = torch.randn(40)
    gradient = torch.randn(3, 40)
    compiled = operators.row_tiles_linear(CASE.x(), tiles.words, bias, *SHAPE)
    transposed = operators.row_tiles_transposed(gradient, tiles.words, *SHAPE)
    sparse = operators.sparse_linear(CASE.x(), *sparse_arguments())
    monkeypatch.setattr(operators, "missing_compiler", lambda: "llvmlite is not installed")
    monkeypatch.setattr(operators, "lookup_product", None)
    monkeypatch.setattr(operators, "expanded_product", None)
    monkeypatch.setattr(operators, "sparse_product", None)
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(operators.row_tiles_linear(CASE.x(), tiles.words, bias, *SHAPE), compiled, **close)
    torch.testing.assert_close(operators.row_tiles_transposed(gradient, tiles.words, *SHAPE), transposed, **close)
    torch.testing.assert_close(operators.sparse_linear(CASE.x(), *sparse_arguments()), sparse, rtol=1e-4, atol=1e-1)


def test_shapes_follow_on_the_meta_device() -> None:
    words = CASE.tiles()[0].words.to("meta")
    x = torch.zeros(2, 5, 100, device="meta", dtype=torch.bfloat16)
    result = operators.row_tiles_linear(x, words, None, *SHAPE)
    assert (result.shape, result.dtype) == ((2, 5, 40), torch.bfloat16)
