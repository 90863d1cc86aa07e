"""The CPU kernel: what it serves, how it binds, that it never answers wrongly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import pytest
import torch
from lowbit_cpu import CpuBitPlanes, self_check
from lowbit_cpu import kernel as kernel_module
from lowbit_cpu.self_check import SelfChecks, check_row_tiles, check_sparse, random_sparse_codes
from plugins.row_tile_cases import TileCase, worst_error
from torch import Tensor, nn

from lowbit import (
    BitPlanes,
    Bits,
    FormatSpec,
    LowbitError,
    PackedWeight,
    Packer,
    PlaneForm,
    QuantizedWeight,
    RowTiles,
    Scales,
    TensorLayout,
    Workload,
)
from lowbit.packing import GenericPacker


@dataclass(frozen=True)
class SignWeight(QuantizedWeight):
    """One plane of signs with a scale for each row."""

    signs: Annotated[Tensor, Bits("out", "in")]
    scales: Annotated[Tensor, Scales("out")]
    format: ClassVar[str] = "test-signs"
    nominal_bits: ClassVar[float] = 1.0

    def dequantize(self) -> Tensor:
        return (self.signs.float() * 2 - 1) * self.scales.float()[:, None]

    def plane_form(self) -> PlaneForm | None:
        scale = self.scales.float()[:, None]
        return PlaneForm(self.shape, (BitPlanes((self.signs,), 2 * scale[None], -scale, self.signs.shape[1]),))


@dataclass(frozen=True)
class FormlessWeight(SignWeight):
    format: ClassVar[str] = "test-formless"

    plane_form = QuantizedWeight.plane_form


class TilePacker(Packer):
    """Holds row tiles as they are."""

    name: ClassVar[str] = "test-tiles"
    formats: ClassVar[tuple[str, ...]] = ("test-formless",)

    def __init__(self, tiles: RowTiles) -> None:
        self.tiles = tiles

    def layout(self, spec: FormatSpec, format_class: type[QuantizedWeight]) -> dict[str, TensorLayout]:
        raise NotImplementedError

    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        raise NotImplementedError

    def unpack(self, packed: PackedWeight, format_class: type[QuantizedWeight]) -> QuantizedWeight:
        raise NotImplementedError

    def row_tiles(self, packed: PackedWeight) -> RowTiles | None:
        return replace(self.tiles, words=packed.tensors["words"])


def sign_weight(kind: type[SignWeight] = SignWeight, out: int = 50, columns: int = 100) -> SignWeight:
    generator = torch.Generator().manual_seed(0)
    signs = torch.rand(out, columns, generator=generator) < 0.5
    return kind(signs, torch.rand(out, generator=generator).half() + 0.5)


def workload(weight: QuantizedWeight, packer: Packer | None = None, **changes: object) -> Workload:
    made = Workload(weight.spec(), packer or GenericPacker(), type(weight), torch.device("cpu"), torch.float32)
    return replace(made, **changes)


def bound_to(form: PlaneForm, monkeypatch: pytest.MonkeyPatch) -> object:
    weight = sign_weight(out=form.shape[0], columns=form.shape[1])
    monkeypatch.setattr(SignWeight, "plane_form", lambda self: form)
    return CpuBitPlanes().bind(GenericPacker().pack(weight), workload(weight))


def test_serves_plane_forms_and_row_tiles() -> None:
    tiles, _ = TileCase(50, 100, 64).tiles()
    assert CpuBitPlanes().supports(workload(sign_weight())).served
    assert CpuBitPlanes().supports(workload(sign_weight(FormlessWeight), TilePacker(tiles))).served


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        (SignWeight, {"device": torch.device("meta")}, "runs on cpu, not on meta"),
        (SignWeight, {"dtype": torch.float64}, "not torch.float64"),
        (FormlessWeight, {}, "'test-formless' has no plane form, and packer 'plain' no row tiles"),
    ],
)
def test_refusals_have_reasons(kind: type[SignWeight], changes: Mapping[str, object], reason: str) -> None:
    support = CpuBitPlanes().supports(workload(sign_weight(kind), **changes))
    assert not support.served
    assert reason in support.reason


def test_a_missing_compiler_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "missing_compiler", lambda: "llvmlite is not installed")
    assert CpuBitPlanes().supports(workload(sign_weight())).reason == "llvmlite is not installed"


def test_importing_the_plugin_loads_no_compiler() -> None:
    code = "import sys, lowbit_cpu; print([name for name in sys.modules if name.startswith(('llvmlite', 'numba'))])"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_plane_form_is_multiplied(dtype: torch.dtype, bias: bool) -> None:
    weight = sign_weight()
    product = CpuBitPlanes().bind(GenericPacker().pack(weight), workload(weight, dtype=dtype))
    x = torch.randn(2, 3, 100).to(dtype)
    added = torch.randn(50).to(dtype) if bias else None
    result = product(x, added)
    expected = torch.nn.functional.linear(
        x.double(), weight.dequantize().double(), None if added is None else added.double()
    )
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_row_tiles_are_used_without_a_copy() -> None:
    case = TileCase(50, 100, 64, activations=4)
    tiles, dense = case.tiles()
    weight = sign_weight(FormlessWeight)
    packed = PackedWeight(weight.spec(), "test-tiles", {"words": tiles.words})
    product = CpuBitPlanes().bind(packed, workload(weight, TilePacker(tiles)))
    assert product.tiles.words.data_ptr() == tiles.words.data_ptr()
    assert worst_error(product(case.x(), None), case.x(), dense) <= 1e-5


def mixed_form() -> PlaneForm:
    """Two parts on permuted and missing columns with column scales, and single weights."""
    generator = torch.Generator().manual_seed(3)
    out, length = 45, 120
    columns = torch.cat([torch.randperm(length, generator=generator)[:70], torch.tensor([-1, -1])])
    planes = tuple(torch.rand(out, 72, generator=generator) < 0.5 for _ in range(2))
    scales, offsets = torch.randn(2, out, 3, generator=generator), torch.randn(out, 3, generator=generator)
    first = BitPlanes(planes, scales, offsets, 32, columns, torch.rand(72, generator=generator) + 0.5)
    second = BitPlanes((torch.rand(out, length, generator=generator) < 0.5,), scales[:1, :, :1].half(), None, length)
    sparse, _ = random_sparse_codes(out, length, generator)
    return PlaneForm((out, length), (first, second), sparse)


@pytest.mark.parametrize("activations", [0, 1, 5, 40])
def test_parts_columns_and_single_weights_add_up(activations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    form = mixed_form()
    product = bound_to(form, monkeypatch)
    x = torch.randn(activations, 120)
    bias = torch.randn(45)
    result = product(x, bias)
    assert result.shape == (activations, 45)
    if activations:
        assert worst_error(product(x, None), x, form.dense()) <= 1e-5
        torch.testing.assert_close(result, product(x, None) + bias, rtol=1e-4, atol=1e-2)


def test_column_scales_alone_keep_half_precision_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    form = mixed_form()
    only = PlaneForm(form.shape, form.parts[:1])
    product = bound_to(only, monkeypatch)
    x = torch.randn(3, 120).bfloat16()
    result = product(x, None)
    exact = x.double() @ only.dense().double().T
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), exact, rtol=2**-8, atol=1e-3)


def test_a_form_of_no_parts_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    product = bound_to(PlaneForm((45, 120), ()), monkeypatch)
    assert torch.equal(product(torch.randn(2, 120), None), torch.zeros(2, 45))


def test_a_weight_without_plane_form_is_refused_at_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sign_weight()
    monkeypatch.setattr(SignWeight, "plane_form", lambda self: None)
    with pytest.raises(LowbitError, match="no sum of bit planes"):
        CpuBitPlanes().bind(GenericPacker().pack(weight), workload(weight))


def test_multiplying_without_binding_says_what_to_do() -> None:
    weight = sign_weight()
    with pytest.raises(NotImplementedError, match=r"bind\(packed, workload\)"):
        CpuBitPlanes().linear(torch.zeros(1, 100), GenericPacker().pack(weight), None)


class Layer(nn.Module):
    def __init__(self, product: object) -> None:
        super().__init__()
        self.product = product
        self.bias = nn.Parameter(torch.randn(45))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.product(x, self.bias)) + 1


def test_torch_compile_traces_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(bound_to(mixed_form(), monkeypatch))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for activations in (1, 6):
        x = torch.randn(activations, 120, requires_grad=True)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-3)
        compiled(x).sum().backward()
        assert x.grad is not None


def test_wrong_code_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = self_check.lookup_product
    monkeypatch.setattr(self_check, "lookup_product", lambda *arguments: right(*arguments) * 1.001)
    monkeypatch.setattr(self_check, "CHECKS", SelfChecks())
    tiles, _ = TileCase(50, 100, 64).tiles()
    checks = SelfChecks()
    for _ in range(2):
        with pytest.raises(LowbitError, match="look-up: error"):
            check_row_tiles(tiles, checks=checks)


def test_wrong_sparse_code_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = self_check.sparse_product
    monkeypatch.setattr(self_check, "sparse_product", lambda *arguments: right(*arguments) * float("nan"))
    with pytest.raises(LowbitError, match="sparse: error inf"):
        check_sparse(SelfChecks())


def test_right_code_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, _ = TileCase(50, 100, 64).tiles()
    checks = SelfChecks()
    check_row_tiles(tiles, checks=checks)
    monkeypatch.setattr(self_check, "lookup_product", None)
    check_row_tiles(tiles, checks=checks)
    assert len(checks._outcomes) == 1
