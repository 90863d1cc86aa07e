"""The kernel that rounds activations to eight bits: its error is the one it states, and nobody gets it unasked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from lowbit_cpu import CpuBitPlanes, CpuBitPlanesInt8, operators, self_check
from lowbit_cpu import kernel as kernel_module
from lowbit_cpu.instruction_sets import InstructionSet, missing_for_rounded
from lowbit_cpu.row_tiles_product import lookup_product
from lowbit_cpu.self_check import SelfChecks, check_row_tiles
from plugins.row_tile_cases import TileCase, tile_cases, worst_error
from plugins.test_cpu_kernel import sign_weight, workload

from lowbit.modeling.reference_kernel import ReferenceKernel
from lowbit.packing import GenericPacker

needs_instructions = pytest.mark.skipif(bool(missing_for_rounded()), reason=missing_for_rounded() or "none")
ROUNDED = InstructionSet.AVX512_ROUNDED


@needs_instructions
@settings(max_examples=60, deadline=None, derandomize=True)
@given(tile_cases())
def test_the_error_stays_within_that_of_eight_bits(case: TileCase) -> None:
    tiles, dense = case.tiles()
    assert worst_error(lookup_product(case.x(), tiles, None, ROUNDED), case.x(), dense) <= 2e-2


@needs_instructions
@pytest.mark.parametrize("group_size", [64, 128, 160])
def test_the_stated_error(group_size: int) -> None:
    case = TileCase(256, 4096, group_size, activations=5)
    tiles, dense = case.tiles()
    exact = case.x().double() @ dense.T
    error = lookup_product(case.x(), tiles, None, ROUNDED).double() - exact
    assert 0.002 < float(error.norm() / exact.norm()) < 0.011


@needs_instructions
def test_activations_that_eight_bits_hold_are_exact() -> None:
    case = TileCase(64, 256, 64)
    tiles, dense = case.tiles()
    x = torch.zeros(1, 256)
    x[0, ::4] = torch.randint(-127, 128, (64,)).float()
    x[0, ::64] = 127
    assert worst_error(lookup_product(x, tiles, None, ROUNDED), x, dense) <= 1e-5


@needs_instructions
@pytest.mark.parametrize("value", [0.0, 1e-42])
def test_vanishing_activations_give_zero(value: float) -> None:
    case = TileCase(64, 256, 64)
    result = lookup_product(torch.full((1, 256), value), case.tiles()[0], None, ROUNDED)
    assert float(result.abs().max()) < 1e-38


@needs_instructions
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [1, 6])
def test_activations_that_are_not_finite_are_not_hidden(value: float, rows: int) -> None:
    case = TileCase(64, 256, 64, activations=rows, has_offsets=True)
    x = case.x()
    expected = lookup_product(x, case.tiles()[0], None, ROUNDED)
    x[rows - 1, 77] = value
    result = lookup_product(x, case.tiles()[0], None, ROUNDED)
    assert bool(result[rows - 1].isnan().all())
    assert torch.equal(result[: rows - 1], expected[: rows - 1])


@needs_instructions
def test_a_bound_weight_is_multiplied() -> None:
    weight = sign_weight()
    product = CpuBitPlanesInt8().bind(GenericPacker().pack(weight), workload(weight))
    x = torch.randn(4, 100)
    assert 1e-6 < worst_error(product(x, None), x, weight.dequantize()) < 1e-2


def test_nobody_gets_it_unasked() -> None:
    assert CpuBitPlanesInt8.priority < ReferenceKernel.priority < CpuBitPlanes.priority


def test_lacking_instructions_are_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "missing_for_rounded", lambda: "the processor lacks avx512vnni")
    assert CpuBitPlanesInt8().supports(workload(sign_weight())).reason == "the processor lacks avx512vnni"


def test_without_the_instructions_the_operator_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "missing_for_rounded", lambda: "the processor lacks avx512vnni")
    case = TileCase(40, 100, 64, activations=3)
    tiles, dense = case.tiles()
    result = operators.row_tiles_linear_rounded(case.x(), tiles.words, None, 40, 100, 64, 2, False, torch.float16)
    assert worst_error(result, case.x(), dense) <= 1e-5


@needs_instructions
def test_wrong_rounded_code_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = self_check.lookup_product

    def wrong(x: torch.Tensor, tiles: object, bias: None, instruction_set: InstructionSet) -> torch.Tensor:
        return right(x, tiles, bias, instruction_set) * (1.5 if instruction_set is ROUNDED else 1)

    monkeypatch.setattr(self_check, "lookup_product", wrong)
    with pytest.raises(Exception, match="rounded: error"):
        check_row_tiles(TileCase(50, 100, 64).tiles()[0], True, SelfChecks())
