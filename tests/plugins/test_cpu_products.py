"""Products with row tiles on the CPU: exact to float32 rounding on every instruction set."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_cpu import threads as threads_module
from lowbit_cpu.expanded_product import dense_weight, expanded_product, transposed_product
from lowbit_cpu.instruction_sets import InstructionSet, available_instruction_sets
from lowbit_cpu.jit import CODES
from lowbit_cpu.operators import row_tiles_linear
from lowbit_cpu.row_tiles_product import lookup_product, shares_of
from lowbit_cpu.self_check import random_sparse_codes
from lowbit_cpu.sparse_product import sparse_product, transposed_sparse_product
from lowbit_cpu.threads import Team, Threads
from plugins.row_tile_cases import TileCase, tile_cases, worst_error
from torch import Tensor

TOLERANCE = 1e-5
many = settings(max_examples=1200, deadline=None, derandomize=True)
some = settings(max_examples=100, deadline=None, derandomize=True)
each_instruction_set = pytest.mark.parametrize("instruction_set", available_instruction_sets(), ids=str)


def operate(x: Tensor, case: TileCase, words: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = (case.rows, case.columns, case.group_size, case.planes, case.has_offsets, case.scale_dtype)
    return row_tiles_linear(x, words, bias, *shape)


@many
@given(tile_cases(), st.sampled_from(available_instruction_sets()))
def test_lookups_are_exact_to_rounding(case: TileCase, instruction_set: InstructionSet) -> None:
    tiles, dense = case.tiles()
    result = lookup_product(case.x(), tiles, None, instruction_set)
    assert result.shape == (case.activations, case.rows)
    assert worst_error(result, case.x(), dense) <= TOLERANCE


@some
@given(tile_cases(), st.sampled_from(available_instruction_sets()))
def test_expanding_pieces_is_exact_to_rounding(case: TileCase, instruction_set: InstructionSet) -> None:
    tiles, dense = case.tiles()
    assert worst_error(expanded_product(case.x(), tiles, None, instruction_set), case.x(), dense) <= TOLERANCE
    gradient = torch.randn(case.activations, case.rows, generator=torch.Generator().manual_seed(case.seed))
    assert worst_error(transposed_product(gradient, tiles, instruction_set), gradient, dense.T) <= TOLERANCE


@some
@given(tile_cases())
def test_torch_reads_the_same_matrix_from_tiles(case: TileCase) -> None:
    tiles, dense = case.tiles()
    torch.testing.assert_close(dense_weight(tiles).double(), dense, rtol=1e-6, atol=0)


@each_instruction_set
@pytest.mark.parametrize(("rows", "columns"), [(1100, 70), (530, 2100)])
def test_matrices_of_several_pieces_and_blocks(instruction_set: InstructionSet, rows: int, columns: int) -> None:
    case = TileCase(rows, columns, 64, activations=5, has_offsets=True)
    tiles, dense = case.tiles()
    assert worst_error(lookup_product(case.x(), tiles, None, instruction_set), case.x(), dense) <= TOLERANCE
    assert worst_error(expanded_product(case.x(), tiles, None, instruction_set), case.x(), dense) <= TOLERANCE


@each_instruction_set
def test_a_long_group_is_exact(instruction_set: InstructionSet) -> None:
    case = TileCase(33, 9000, 16384, planes=3, has_offsets=True, activations=2)
    tiles, dense = case.tiles()
    assert worst_error(lookup_product(case.x(), tiles, None, instruction_set), case.x(), dense) <= TOLERANCE


@each_instruction_set
def test_small_half_precision_scales_keep_their_value(instruction_set: InstructionSet) -> None:
    from lowbit import to_row_tiles

    scales = torch.full((1, 32, 1), 3 * 2.0**-24, dtype=torch.float16)
    scales[0, 1] = -65504
    tiles = to_row_tiles((torch.ones(32, 8, dtype=torch.bool),), scales, None, 8, torch.float16)
    result = lookup_product(torch.ones(1, 8), tiles, None, instruction_set)
    assert torch.equal(result[0], 8 * scales[0, :, 0].float())


@some
@given(tile_cases(), st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_types_are_rounded_once(case: TileCase, dtype: torch.dtype) -> None:
    tiles, dense = case.tiles()
    x = case.x(dtype)
    result = operate(x, case, tiles.words)
    assert result.dtype == dtype
    exact = x.double() @ dense.T
    bound = torch.finfo(dtype).eps * exact.abs() + TOLERANCE * x.double().norm(dim=1)[:, None] * dense.norm(dim=1)
    small = torch.finfo(dtype).smallest_normal
    assert bool(((result.double() - exact).abs() <= bound + small).all())


@some
@given(tile_cases(activations=6), st.sampled_from(["offset", "columns", "expanded", "leading"]))
def test_any_view_of_the_activations(case: TileCase, view: str) -> None:
    tiles, dense = case.tiles()
    x = case.x()
    views = {
        "offset": torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape),
        "columns": x.T.contiguous().T,
        "expanded": x[:1].expand(4, -1),
        "leading": x.unsqueeze(1).expand(-1, 2, -1),
    }
    result = operate(views[view], case, tiles.words)
    assert result.is_contiguous()
    flat = views[view].reshape(-1, case.columns)
    assert worst_error(result.reshape(-1, case.rows), flat, dense) <= TOLERANCE


@pytest.mark.parametrize("activations", [1, 3, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_is_added(activations: int, dtype: torch.dtype) -> None:
    case = TileCase(50, 100, 64, activations=activations)
    tiles, dense = case.tiles()
    bias = torch.linspace(-30, 30, 50).to(dtype)
    result = operate(case.x(), case, tiles.words, bias)
    expected = case.x().double() @ dense.T + bias.double()
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 100), (2, 0, 100), (0, 0, 100)])
def test_no_rows_of_activations(shape: tuple[int, ...]) -> None:
    case = TileCase(50, 100, 64)
    result = operate(torch.zeros(shape), case, case.tiles()[0].words)
    assert result.shape == (*shape[:-1], 50)


def test_a_single_vector_keeps_its_shape() -> None:
    case = TileCase(50, 100, 64)
    assert operate(torch.zeros(100), case, case.tiles()[0].words).shape == (50,)


def test_activations_of_another_width_are_refused() -> None:
    case = TileCase(50, 100, 64)
    with pytest.raises(ValueError, match="last dimension of 100"):
        operate(torch.zeros(2, 50), case, case.tiles()[0].words)


@some
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(0, 1000))
def test_sparse_weights_are_exact_to_rounding(rows: int, length: int, activations: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sparse, _ = random_sparse_codes(rows, length, generator)
    x = torch.randn(activations, length, generator=generator)
    gradient = torch.randn(activations, rows, generator=generator)
    dense = sparse.dense(length)
    for instruction_set in available_instruction_sets():
        assert worst_error(sparse_product(x, sparse, instruction_set), x, dense) <= TOLERANCE
    assert worst_error(transposed_sparse_product(gradient, sparse, length), gradient, dense.T) <= TOLERANCE


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("activations", [1, 7])
@pytest.mark.parametrize("team", list(Team), ids=str)
def test_results_do_not_depend_on_threads(team: Team, activations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = TileCase(1030, 600, 64, activations=activations, has_offsets=True)
    tiles, _ = case.tiles()
    torch.set_num_threads(1)
    alone = lookup_product(case.x(), tiles, None)
    torch.set_num_threads(2)
    run = Threads.run
    monkeypatch.setattr(Threads, "run", lambda self, code, arguments, shares: run(self, code, arguments, shares, team))
    assert shares_of(case.rows * case.columns, 65, 2) == 2
    assert torch.equal(lookup_product(case.x(), tiles, None), alone)


@pytest.mark.usefixtures("two_threads")
def test_several_python_threads_at_once() -> None:
    cases = [TileCase(1030, 600, 64, planes=planes, seed=planes) for planes in (1, 2, 3)]
    ready = [(case.x(), case.tiles()[0]) for case in cases]
    expected = [lookup_product(x, tiles, None) for x, tiles in ready]
    wrong: list[int] = []

    def work(number: int) -> None:
        x, tiles = ready[number]
        wrong.extend(number for _ in range(20) if not torch.equal(lookup_product(x, tiles, None), expected[number]))

    workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_a_forked_process_does_not_wait_for_lost_threads() -> None:
    forked = Threads()
    forked._after_fork()
    case = TileCase(64, 64, 64)
    tiles, _ = case.tiles()
    expected = lookup_product(case.x(), tiles, None)
    original = threads_module.THREADS
    import lowbit_cpu.row_tiles_product as module

    module.THREADS = forked
    try:
        assert torch.equal(lookup_product(case.x(), tiles, None), expected)
    finally:
        module.THREADS = original


def test_code_is_compiled_once() -> None:
    case = TileCase(20, 64, 64)
    tiles, _ = case.tiles()
    lookup_product(case.x(), tiles, None)
    compiled = dict(CODES._codes)
    lookup_product(case.x(), tiles, None)
    assert compiled == CODES._codes
