"""The CPU plugin reads no foreign memory: arguments that do not belong together are refused, defaults do not matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from lowbit_cpu import operators
from lowbit_cpu.self_check import SelfChecks, check_row_tiles, check_sparse, random_sparse_codes, relative_error
from plugins.row_tile_cases import TileCase
from plugins.test_cpu_kernel import bound_to, mixed_form
from torch import Tensor
from torch._subclasses import FakeTensorMode

from lowbit import LowbitError, PlaneForm, SparseCodes

CASE = TileCase(40, 100, 64, has_offsets=True, activations=3)
SHAPE = (40, 100, 64, 2, True, torch.float16)
SIZES = ("rows", "columns", "group_size", "planes")
PRODUCTS = (operators.row_tiles_linear, operators.row_tiles_linear_rounded)
each_product = pytest.mark.parametrize("product", PRODUCTS, ids=["exact", "rounded"])


def sparse_codes() -> SparseCodes:
    return random_sparse_codes(40, 100, torch.Generator().manual_seed(0))[0]


def tensors(sparse: SparseCodes) -> tuple[Tensor, ...]:
    return sparse.row_starts, sparse.columns, sparse.codes, sparse.scales, sparse.zero_points


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("activations", [1, 5, 40])
def test_products_do_not_depend_on_the_default_dtype(activations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    form = mixed_form()
    part = replace(form.parts[0], scales=form.parts[0].scales.float(), offsets=None)
    form = PlaneForm(form.shape, (part, form.parts[1]), form.sparse)
    dense = form.dense()
    assert dense.dtype == torch.float32
    product = bound_to(form, monkeypatch)
    x = torch.randn(activations, 120, dtype=torch.float32, requires_grad=True)
    result = product(x, None)
    result.square().sum().backward()
    assert relative_error(result.detach(), x.detach(), dense) <= 1e-5
    assert x.grad is not None
    assert relative_error(x.grad, 2 * result.detach(), dense.T) <= 1e-5


@pytest.mark.usefixtures("default_dtype")
def test_comparing_compiled_code_does_not_depend_on_the_default_dtype() -> None:
    checks = SelfChecks()
    check_row_tiles(operators.RowTiles(torch.zeros(3, 2, 80, dtype=torch.int32), *SHAPE), checks=checks)
    check_sparse(checks)
    assert list(checks._outcomes.values()) == ["", ""]


@pytest.mark.usefixtures("default_dtype")
def test_torch_alone_does_not_depend_on_the_default_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "missing_compiler", lambda: "llvmlite is not installed")
    sparse = sparse_codes()
    x = torch.randn(3, 100, dtype=torch.float32)
    result = operators.sparse_linear(x, *tensors(sparse))
    assert relative_error(result, x, sparse.dense(100)) <= 1e-5


def test_products_do_not_depend_on_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    product = bound_to(mixed_form(), monkeypatch)
    for activations in (1, 40):
        x = torch.randn(activations, 120)
        expected = product(x, None)
        with torch.device("meta"):
            assert torch.equal(product(x, None), expected)


WRONG_WORDS = {
    "short": (lambda words: words[:, :, :-1], r"words of shape \(3, 2, 88\), got \(3, 2, 87\)"),
    "few groups": (lambda words: words[:, :1], r"words of shape \(3, 2, 88\), got \(3, 1, 88\)"),
    "few tiles": (lambda words: words[:2], r"words of shape \(3, 2, 88\), got \(2, 2, 88\)"),
    "flat": (lambda words: words.flatten(), r"words of shape \(3, 2, 88\)"),
    "wide": (lambda words: words.long(), r"words of torch.int32, got torch.int64"),
    "elsewhere": (lambda words: words.to("meta"), "words on cpu, where the activations are, got meta"),
}


@pytest.mark.parametrize(
    ("wrong", "fake"),
    [(wrong, fake) for wrong in WRONG_WORDS for fake in (False, True) if (wrong, fake) != ("elsewhere", True)],
)
def test_words_that_do_not_fit_are_refused(wrong: str, fake: bool) -> None:
    change, message = WRONG_WORDS[wrong]
    words = CASE.tiles()[0].words
    x, gradient = CASE.x(), torch.zeros(3, 40)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if fake:
        words, x, gradient = (mode.from_tensor(each) for each in (words, x, gradient))
    for product in PRODUCTS:
        with pytest.raises(ValueError, match=message):
            product(x, change(words), None, *SHAPE)
    with pytest.raises(ValueError, match=message):
        operators.row_tiles_transposed(gradient, change(words), *SHAPE)


@each_product
@pytest.mark.parametrize("size", range(4), ids=SIZES)
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_are_positive(product: object, size: int, value: int) -> None:
    shape = (*SHAPE[:size], value, *SHAPE[size + 1 :])
    with pytest.raises(ValueError, match="of at least 1"):
        product(CASE.x(), CASE.tiles()[0].words, None, *shape)


@each_product
def test_scales_of_another_dtype_are_refused(product: object) -> None:
    with pytest.raises(ValueError, match=r"got torch.int16"):
        product(CASE.x(), CASE.tiles()[0].words, None, *SHAPE[:5], torch.int16)


@each_product
@pytest.mark.parametrize("shape", [(), (1,), (41,), (1, 40)])
def test_a_bias_that_does_not_fit_is_refused(product: object, shape: tuple[int, ...]) -> None:
    for x, words in ((CASE.x(), CASE.tiles()[0].words), (CASE.x().to("meta"), CASE.tiles()[0].words.to("meta"))):
        with pytest.raises(ValueError, match=r"bias of shape \(40,\)"):
            product(x, words, torch.zeros(shape, device=x.device), *SHAPE)


def test_a_bias_that_does_not_fit_the_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    product = bound_to(mixed_form(), monkeypatch)
    with pytest.raises(ValueError, match=r"bias of shape \(45,\), got \(1,\)"):
        product(torch.zeros(2, 120), torch.zeros(1))


@pytest.mark.parametrize("width", [119, 121, 140, 1])
def test_activations_of_another_width_are_refused(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    form = mixed_form()
    permuted = replace(form.parts[0], column_scales=None)
    for each in (
        form,
        PlaneForm(form.shape, ()),
        PlaneForm(form.shape, (), form.sparse),
        PlaneForm(form.shape, (permuted,)),
    ):
        product = bound_to(each, monkeypatch)
        with pytest.raises(ValueError, match=rf"last dimension of 120, got a tensor of shape \(2, {width}\)"):
            product(torch.zeros(2, width), None)


WRONG_SPARSE = {
    "row_starts": (lambda s: replace(s, row_starts=s.row_starts[:-1]), r"row_starts of shape \(41,\), got \(40,\)"),
    "long row_starts": (lambda s: replace(s, row_starts=s.row_starts.long()), "row_starts of torch.int32"),
    "codes": (lambda s: replace(s, codes=s.codes[:-1]), "columns of shape"),
    "wide codes": (lambda s: replace(s, codes=s.codes.int()), "codes of torch.uint8, got torch.int32"),
    "columns": (lambda s: replace(s, columns=s.columns.long()), "columns of torch.int32, got torch.int64"),
    "zero_points": (lambda s: replace(s, zero_points=s.zero_points[:1]), r"zero_points of shape \(40,\), got \(1,\)"),
    "scales": (lambda s: replace(s, scales=s.scales.int()), "scales of a floating-point dtype"),
}


@pytest.mark.parametrize("wrong", list(WRONG_SPARSE))
def test_entries_that_do_not_fit_are_refused(wrong: str) -> None:
    change, message = WRONG_SPARSE[wrong]
    entries = tensors(change(sparse_codes()))
    for device in ("cpu", "meta"):
        moved = [each.to(device) for each in entries]
        with pytest.raises(ValueError, match=message):
            operators.sparse_linear(torch.zeros(2, 100, device=device), *moved)
        with pytest.raises(ValueError, match=message):
            operators.sparse_transposed(torch.zeros(2, 40, device=device), *moved, 100)


def changed(tensor: Tensor, place: int, value: int) -> Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


WRONG_RANGES = {
    "column": (lambda s: replace(s, columns=changed(s.columns, 5, 5000)), "columns from 0 to 99, got 0 to 5000"),
    "negative column": (lambda s: replace(s, columns=changed(s.columns, 5, -1)), "columns from 0 to 99, got -1 to"),
    "first start": (lambda s: replace(s, row_starts=changed(s.row_starts, 0, -4)), "ascend from 0"),
    "middle start": (lambda s: replace(s, row_starts=changed(s.row_starts, 7, 10**6)), "ascend from 0"),
    "last start": (lambda s: replace(s, row_starts=changed(s.row_starts, -1, 10**6)), "ascend from 0"),
}


@pytest.mark.parametrize("wrong", list(WRONG_RANGES))
def test_entries_outside_the_matrix_are_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = WRONG_RANGES[wrong]
    sparse = change(sparse_codes())
    with pytest.raises(ValueError, match=message):
        operators.sparse_linear(torch.zeros(2, 100), *tensors(sparse))
    with pytest.raises(ValueError, match=message):
        operators.sparse_transposed(torch.zeros(2, 40), *tensors(sparse), 100)
    with pytest.raises(LowbitError, match=message):
        bound_to(PlaneForm((40, 100), (), sparse), monkeypatch)


def test_parts_that_do_not_fit_the_matrix_are_refused_at_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    form = mixed_form()
    permuted, plain = form.parts
    for wrong, message in (
        (replace(plain, planes=(plain.planes[0][:, :-1],)), r"bit planes of shape \(45, 120\)"),
        (replace(permuted, columns=changed(permuted.columns, 0, 120)), "columns from -1 to 119, got -1 to 120"),
        (replace(permuted, column_scales=torch.ones(1)), "72 column scales"),
    ):
        with pytest.raises(LowbitError, match=message):
            bound_to(PlaneForm(form.shape, (wrong,)), monkeypatch)
    with pytest.raises(LowbitError, match="single weights of 45 rows, got 40"):
        bound_to(PlaneForm((45, 100), (), sparse_codes()), monkeypatch)


@pytest.mark.parametrize("lead", [(0,), (2, 0)])
def test_gradients_of_no_rows(lead: tuple[int, ...]) -> None:
    x = torch.zeros(*lead, 100, requires_grad=True)
    bias = torch.ones(40, requires_grad=True)
    for product in PRODUCTS:
        product(x, CASE.tiles()[0].words, bias, *SHAPE).sum().backward()
    operators.sparse_linear(x, *tensors(sparse_codes())).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (*lead, 100)
    assert torch.equal(bias.grad, torch.zeros(40))


@pytest.mark.parametrize("compiler", [True, False])
def test_autocast_changes_nothing(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler:
        monkeypatch.setattr(operators, "missing_compiler", lambda: "llvmlite is not installed")
    words, sparse = CASE.tiles()[0].words, tensors(sparse_codes())

    def products(x: Tensor, gradient: Tensor) -> list[Tensor]:
        linear = [product(x, words, None, *SHAPE) for product in PRODUCTS]
        transposed = operators.row_tiles_transposed(gradient, words, *SHAPE)
        return [
            *linear,
            transposed,
            operators.sparse_linear(x, *sparse),
            operators.sparse_transposed(gradient, *sparse, 100),
        ]

    arguments = CASE.x(), torch.randn(3, 40)
    expected = products(*arguments)
    traced = torch.compile(products, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [products(*arguments), traced(*arguments)]
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        faked = products(*[mode.from_tensor(each) for each in arguments])
    assert all(each.dtype == torch.float32 for each in faked)
    for found in results:
        for each, exact in zip(found, expected, strict=True):
            assert torch.equal(each, exact)
