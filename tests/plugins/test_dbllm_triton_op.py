"""The dual-binary product as an operator and as a kernel of lowbit, where no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from lowbit_dbllm import DualBinaryWeight, InterleavedPacker, TritonDualBinary, triton_kernel
from lowbit_dbllm.triton_op import dual_binary_linear
from torch import Tensor

from lowbit import FormatSpec, RowTiles, Workload
from lowbit.modeling.layouts import get_packer
from lowbit.registry import registry


def random_weight(out: int, length: int, group_size: int) -> DualBinaryWeight:
    generator = torch.Generator().manual_seed(out + length)
    planes = torch.rand(2, out, length, generator=generator) < 0.5
    groups = 1 if group_size == -1 else -(-length // group_size)
    scales = torch.randn(2, out, groups, generator=generator).half()
    return DualBinaryWeight(planes[0], planes[1], scales[0], scales[1], group_size)


def tiles_of(weight: DualBinaryWeight) -> RowTiles:
    packer = InterleavedPacker()
    return packer.row_tiles(packer.pack(weight))


def declaration(tiles: RowTiles) -> tuple[int, int, int, torch.dtype]:
    return tiles.rows, tiles.columns, tiles.group_size, tiles.scale_dtype


def linear(x: Tensor, tiles: RowTiles, bias: Tensor | None) -> Tensor:
    result: Tensor = dual_binary_linear(x, tiles.words, bias, *declaration(tiles))
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64)])
def test_the_operator_holds_to_the_rules_of_torch(shape: tuple[int, ...], biased: bool, dtype: torch.dtype) -> None:
    tiles = tiles_of(random_weight(20, 64, 32))
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    bias = torch.randn(20, dtype=dtype, requires_grad=True) if biased else None
    torch.library.opcheck(dual_binary_linear, (x, tiles.words, bias, *declaration(tiles)))


@pytest.mark.parametrize("group_size", [-1, 7, 64])
def test_the_reference_is_the_dequantized_product(group_size: int) -> None:
    weight = random_weight(19, 100, group_size)
    x, bias = torch.randn(2, 3, 100), torch.randn(19)
    expected = torch.nn.functional.linear(x, weight.dequantize(), bias)
    assert torch.equal(linear(x, tiles_of(weight), bias), expected)


def test_gradients_are_those_of_the_dense_product() -> None:
    weight = random_weight(19, 100, 64)
    tiles, dense = tiles_of(weight), weight.dequantize()
    x = torch.randn(2, 3, 100, requires_grad=True)
    bias = torch.randn(19, requires_grad=True)
    upstream = torch.randn(2, 3, 19)
    ours = torch.autograd.grad(linear(x, tiles, bias), (x, bias), upstream)
    expected = torch.autograd.grad(torch.nn.functional.linear(x, dense, bias), (x, bias), upstream)
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_compiled_code_has_no_graph_break() -> None:
    packed = InterleavedPacker().pack(random_weight(19, 100, 64))
    kernel = TritonDualBinary()
    bound = partial(triton_kernel._product, InterleavedPacker().row_tiles(packed), "")  # what `bind` returns
    x = torch.randn(2, 100)
    for product in (bound, lambda x, bias: kernel.linear(x, packed, bias)):
        compiled = torch.compile(lambda x, product=product: product(x, None) + 1, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), kernel.linear(x, packed, None) + 1)


def workload(group_size: int = 64, length: int = 128, **changes: object) -> Workload:
    groups = 1 if group_size == -1 else -(-length // group_size)
    sizes = {"out": 128, "in": length, "groups": groups}
    spec = FormatSpec("dual-binary", 1, sizes, {}, {"group_size": group_size})
    given = {"spec": spec, "packer": InterleavedPacker(), "format_class": DualBinaryWeight}
    given |= {"device": torch.device("cuda"), "dtype": torch.float16}
    return Workload(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "find_spec", lambda name: object())


@pytest.mark.parametrize("packer", ["interleaved", "bit-planes", "plain"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("with_triton")
def test_every_layout_of_dual_binary_weights_is_served(packer: str, dtype: torch.dtype) -> None:
    assert TritonDualBinary().supports(workload(packer=get_packer(packer), dtype=dtype)).served


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("group_size", [32, 96, 256, -1])
def test_groups_of_whole_words_are_served(group_size: int) -> None:
    assert TritonDualBinary().supports(workload(group_size)).served


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (workload(48), "multiple of 32 columns, not 48"),
        (workload(-1, length=100), "multiple of 32 columns, not 100"),
        (workload(device=torch.device("cpu")), "CUDA devices, not on cpu"),
        (workload(dtype=torch.float64), "not torch.float64"),
        (workload(spec=FormatSpec("uniform", 1, {"in": 64}, {}, {"group_size": 64})), "dual-binary weights only"),
    ],
)
def test_a_refusal_says_why(refused: Workload, reason: str) -> None:
    support = TritonDualBinary().supports(refused)
    assert not support.served
    assert reason in support.reason


def test_a_refusal_says_that_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "find_spec", lambda name: None)
    support = TritonDualBinary().supports(workload())
    assert not support.served
    assert "pip install" in support.reason


def test_packer_and_kernel_are_registered() -> None:
    assert registry().packer("interleaved") is InterleavedPacker
    assert TritonDualBinary in registry().kernels()


def test_the_kernel_multiplies_by_the_interleaved_layout_on_any_device() -> None:
    weight = random_weight(19, 100, 64)
    x = torch.randn(4, 100)
    y = TritonDualBinary().linear(x, InterleavedPacker().pack(weight), None)
    assert torch.equal(y, torch.nn.functional.linear(x, weight.dequantize()))


def test_importing_the_plugin_does_not_import_triton() -> None:
    code = "import sys, lowbit_dbllm; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("packer", ["interleaved", "bit-planes", "plain"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_bound_product_is_right_on_a_gpu(
    packer: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("LOWBIT_CACHE_DIR", str(tmp_path))
    weight = random_weight(272, 512, 64).to("cuda")
    packed = get_packer(packer).pack(weight)
    given = Workload(packed.spec, get_packer(packer), DualBinaryWeight, torch.device("cuda"), dtype)
    assert TritonDualBinary().supports(given).served
    bound = TritonDualBinary().bind(packed, given)
    dense = weight.dequantize().double()
    for rows in (1, 5, 16, 40, 300):
        x = torch.randn(rows, 512, device="cuda").to(dtype)
        limit = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        error = (bound(x, None).double() - x.double() @ dense.T).abs()
        assert bool((error <= limit * x.double().norm(dim=1, keepdim=True) * dense.norm(dim=1)).all())


def test_the_operator_computes_in_the_dtype_of_its_activations_under_autocast() -> None:
    packed = InterleavedPacker().pack(random_weight(19, 100, 64))
    x = torch.randn(4, 100)
    expected = TritonDualBinary().linear(x, packed, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TritonDualBinary().linear(x, packed, None)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
