"""The Triton kernels against float64: on a GPU, or under Triton's interpreter where that is asked for.

`TRITON_INTERPRET=1` must be set before Triton is imported, so the interpreter's run is one of its own, which
test_dbllm_triton_interpreter.py starts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_dbllm import DualBinaryWeight, InterleavedPacker
from lowbit_dbllm.triton_configurations import (
    BUCKETS,
    Configuration,
    GemmConfiguration,
    GemvConfiguration,
    candidate_configurations,
)
from lowbit_dbllm.triton_launch import planned_product, product
from torch import Tensor

from lowbit import RowTiles

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8}
"""Largest relative error of one rounding to the dtype; float32's is within what its additions are allowed.

The interpreter cuts numbers off to bfloat16 where a GPU rounds them to the nearest.
"""

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no GPU; the interpreter's run is a process of its own", allow_module_level=True)


@pytest.fixture(params=["interpreter"] if INTERPRETED else ["cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device("cpu" if request.param == "interpreter" else "cuda")


@dataclass(frozen=True)
class Case:
    tiles: RowTiles
    dense: Tensor  # float64 [rows, columns]


def make_case(
    device: torch.device,
    rows: int,
    columns: int,
    group_size: int,
    scale_dtype: torch.dtype = torch.float16,
    whole_scales: bool = False,
) -> Case:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    planes = torch.rand(2, rows, columns, generator=generator) < 0.5
    groups = 1 if group_size == -1 else -(-columns // group_size)
    scales = torch.randn(2, rows, groups, generator=generator)
    scales = (4 * scales).round().to(scale_dtype) if whole_scales else scales.to(scale_dtype)
    weight = DualBinaryWeight(planes[0], planes[1], scales[0], scales[1], group_size)
    size = columns if group_size == -1 else group_size
    dense = sum(s.double().repeat_interleave(size, 1)[:, :columns] * p for s, p in zip(scales, planes, strict=True))
    assert isinstance(dense, Tensor)
    packer = InterleavedPacker()
    packed = packer.pack(weight.to(device))
    return Case(packer.row_tiles(packed), dense.to(device))


def activations(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype).to(device)


def assert_close(y: Tensor, x: Tensor, case: Case, bias: Tensor | None = None) -> None:
    exact = x.double() @ case.dense.T
    rounding = ROUNDING[y.dtype]
    # A prefill multiplies by weights that are rounded to the activations' type; otherwise only the result is.
    of_weights = rounding if x.flatten(0, -2).shape[0] > 16 else 0.0
    limit = (1e-5 + of_weights) * x.double().norm(dim=-1, keepdim=True) * case.dense.norm(dim=1)
    if bias is not None:
        exact = exact + bias.double()
        limit = limit + 2**-24 * (exact.abs() + bias.double().abs())
    assert y.shape == exact.shape
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= limit + rounding * (exact.abs() + limit)).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_rows", [*range(1, 18), 33, 64])
def test_any_number_of_rows(device: torch.device, x_rows: int, dtype: torch.dtype) -> None:
    case = make_case(device, 40, 192, 64)
    x = activations(device, x_rows, 192, dtype)
    assert_close(planned_product(x, case.tiles, None, {}), x, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_rows", [2, 20])
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"),
    [
        (1, 1, 32),
        (1, 320, 64),
        (50, 1, 128),
        (16, 32, 32),
        (17, 33, 32),
        (33, 100, 64),
        (31, 130, 64),
        (20, 257, 128),
        (18, 128, -1),
        (18, 160, -1),
        (40, 200, 96),
        (5, 1000, 160),
    ],
)
def test_any_shape_and_group(
    device: torch.device, rows: int, columns: int, group_size: int, x_rows: int, dtype: torch.dtype
) -> None:
    case = make_case(device, rows, columns, group_size)
    x = activations(device, x_rows, columns, dtype)
    assert_close(planned_product(x, case.tiles, None, {}), x, case)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_rows", [2, 18])
def test_scales_of_any_dtype(device: torch.device, x_rows: int, dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    case = make_case(device, 19, 100, 64, scale_dtype)
    x = activations(device, x_rows, 100, dtype)
    assert_close(planned_product(x, case.tiles, None, {}), x, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("configuration", [GemvConfiguration(1, 2, 2, 2, parts) for parts in (1, 2, 3, 5, 16)])
def test_a_split_input_dimension_gives_the_same(
    device: torch.device, configuration: Configuration, dtype: torch.dtype
) -> None:
    case = make_case(device, 33, 700, 64)
    x = activations(device, 3, 700, dtype)
    bias = activations(device, 1, 33, dtype)[0]
    assert_close(product(x, case.tiles, bias, configuration), x, case, bias)


@pytest.mark.parametrize("x_rows", [1, 12, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_is_added(device: torch.device, dtype: torch.dtype, x_rows: int) -> None:
    case = make_case(device, 37, 96, 32)
    x = activations(device, x_rows, 96, dtype)
    bias = 10 * activations(device, 1, 37, dtype)[0]
    assert_close(planned_product(x, case.tiles, bias, {}), x, case, bias)


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_candidate_is_right(device: torch.device, dtype: torch.dtype, bucket: int) -> None:
    case = make_case(device, 100, 300, 64)
    x = activations(device, min(bucket, 70), 300, dtype)
    for configuration in candidate_configurations(case.tiles, bucket, dtype == torch.float32):
        assert_close(product(x, case.tiles, None, configuration), x, case)


ANY_CASE = {
    "rows": st.integers(1, 70),
    "columns": st.integers(1, 400),
    "group_size": st.sampled_from([32, 64, 96, 128, 256]),
    "x_rows": st.integers(1, 24),
    "dtype": st.sampled_from(DTYPES),
    "scale_dtype": st.sampled_from(DTYPES),
}


def assert_random_case(
    rows: int, columns: int, group_size: int, x_rows: int, dtype: torch.dtype, scale_dtype: torch.dtype
) -> None:
    device = torch.device("cpu" if INTERPRETED else "cuda")
    case = make_case(device, rows, columns, group_size, scale_dtype)
    x = activations(device, x_rows, columns, dtype)
    assert_close(planned_product(x, case.tiles, None, {}), x, case)


@given(**ANY_CASE)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_random_cases(**case: Any) -> None:
    assert_random_case(**case)


@pytest.mark.slow
@given(**ANY_CASE)
@settings(max_examples=3000, deadline=None)
def test_thousands_of_random_cases(**case: Any) -> None:
    assert_random_case(**case)


@pytest.mark.parametrize("x_rows", [1, 5, 20])
def test_views_and_leading_dimensions(device: torch.device, x_rows: int) -> None:
    case = make_case(device, 21, 64, 64)
    wide = activations(device, 2 * x_rows, 131, torch.float32)
    for x in (
        wide[::2, 3:67],  # unaligned rows
        wide[:x_rows, 1:129:2],  # a last dimension that is not dense
        wide[:64, :64].t()[:, :x_rows].t(),
        wide[:x_rows, :64].expand(3, x_rows, 64),
    ):
        assert_close(planned_product(x, case.tiles, None, {}), x, case)


def test_no_rows_give_no_rows(device: torch.device) -> None:
    case = make_case(device, 21, 64, 64)
    assert planned_product(torch.zeros(0, 64, device=device), case.tiles, None, {}).shape == (0, 21)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_bit_has_its_place(device: torch.device, dtype: torch.dtype) -> None:
    case = make_case(device, 48, 512, 128, whole_scales=True)
    columns = torch.tensor([0, 1, 2, 15, 16, 17, 30, 31, 32, 100, 127, 128, 300, 510, 511], device=device)
    x = torch.nn.functional.one_hot(columns, 512).to(dtype)  # each row of activations picks one column of the weight
    picked = case.dense[:, columns].T  # [x_rows, rows]
    y = product(x, case.tiles, None, GemvConfiguration(1, 2, 2, 2, 1))
    z = product(x, case.tiles, None, GemmConfiguration(1, 16, 4, 2))
    assert torch.equal(y, picked.to(dtype))
    assert torch.equal(z, picked.to(dtype))


def test_a_captured_graph_replays_the_product(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("graphs are captured on a GPU")
    case = make_case(device, 64, 4096, 64)
    x = activations(device, 1, 4096, torch.float16)
    configuration = GemvConfiguration(1, 4, 4, 3, 4)
    expected = product(x, case.tiles, None, configuration)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = product(x, case.tiles, None, configuration)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)
