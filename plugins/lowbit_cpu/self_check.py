"""Comparing compiled code with torch once a process, before anything relies on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypedDict

import torch
from torch import Tensor

from lowbit import LowbitError, RowTiles, SparseCodes, row_tiles_shape
from lowbit_cpu.expanded_product import dense_weight, expanded_product, transposed_product
from lowbit_cpu.instruction_sets import InstructionSet
from lowbit_cpu.row_tiles_product import default_instruction_set, lookup_product
from lowbit_cpu.sparse_product import reference_sparse_product, sparse_product

TOLERANCE = 1e-5
"""Largest error, as a share of the norms of row and activations."""

ROUNDED_TOLERANCE = 1e-2
"""The same where activations are rounded to eight bits."""


class RealOptions(TypedDict):
    """Which tensors to make."""

    dtype: torch.dtype
    device: str


ROWS = 147
GROUPS = 3
ACTIVATION_ROWS = 7  # four, two and one at a time

REAL: RealOptions = {"dtype": torch.float32, "device": "cpu"}
"""Of all random numbers, whatever the defaults are."""


class SelfChecks:
    """Remembers what was compared and what came out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: dict[Hashable, str] = {}

    def require(self, key: Hashable, compare: Callable[[], str]) -> None:
        """Compare once a key, and refuse ever after if it failed.

        Raises:
            LowbitError: The compiled code gives wrong answers.
        """
        with self._lock:
            if key not in self._outcomes:
                self._outcomes[key] = compare()
            outcome = self._outcomes[key]
        if outcome:
            raise LowbitError(f"the code compiled for this processor is wrong ({outcome}); it is not used")


CHECKS = SelfChecks()


def check_row_tiles(tiles: RowTiles, rounded: bool = False, checks: SelfChecks = CHECKS) -> None:
    """Compare the products with tiles of the same shape as the given ones.

    Args:
        tiles: Give the shape.
        rounded: Whether to compare the product with rounded activations too.
        checks: What was compared before.

    Raises:
        LowbitError: They disagree with torch.
    """
    instruction_set = default_instruction_set()
    shape = (tiles.planes, tiles.has_offsets, tiles.scale_dtype, tiles.group_words)
    checks.require((*shape, instruction_set), lambda: _compare_row_tiles(tiles, instruction_set))
    if rounded:
        checks.require((*shape, InstructionSet.AVX512_ROUNDED), lambda: _compare_rounded(tiles))


def check_sparse(checks: SelfChecks = CHECKS) -> None:
    """Compare the sparse product.

    Raises:
        LowbitError: It disagrees with torch.
    """
    instruction_set = default_instruction_set()
    checks.require(("sparse", instruction_set), lambda: _compare_sparse(instruction_set))


def _compare_row_tiles(like: RowTiles, instruction_set: InstructionSet) -> str:
    generator = torch.Generator("cpu").manual_seed(0)
    tiles = random_row_tiles(like, generator)
    dense = dense_weight(tiles)
    x = torch.randn(ACTIVATION_ROWS, tiles.columns, generator=generator, **REAL)
    gradient = torch.randn(2, tiles.rows, generator=generator, **REAL)
    cases = {
        "look-up": (lookup_product(x, tiles, None, instruction_set), x, dense),
        "one row": (lookup_product(x[:1], tiles, None, instruction_set), x[:1], dense),
        "expansion": (expanded_product(x, tiles, None, instruction_set), x, dense),
        "gradient": (transposed_product(gradient, tiles, instruction_set), gradient, dense.T),
    }
    wrong = [
        f"{name}: error {error:.1e}" for name, case in cases.items() if (error := relative_error(*case)) > TOLERANCE
    ]
    return ", ".join(wrong)


def _compare_rounded(like: RowTiles) -> str:
    generator = torch.Generator("cpu").manual_seed(0)
    tiles = random_row_tiles(like, generator)
    x = torch.randn(ACTIVATION_ROWS, tiles.columns, generator=generator, **REAL)
    error = relative_error(lookup_product(x, tiles, None, InstructionSet.AVX512_ROUNDED), x, dense_weight(tiles))
    return f"rounded: error {error:.1e}" if error > ROUNDED_TOLERANCE else ""


def random_row_tiles(like: RowTiles, generator: torch.Generator) -> RowTiles:
    """Return small random tiles of the same shape of group; padding holds no zeros, which no code may rely on."""
    group_size = like.group_size
    columns = group_size * GROUPS
    shape = row_tiles_shape(ROWS, columns, group_size, like.planes, like.has_offsets, like.scale_dtype)
    bits = like.planes * like.group_words * like.tile_rows
    words = torch.randint(
        -(2**31), 2**31, (*shape[:2], bits), dtype=torch.int64, device="cpu", generator=generator
    ).int()
    numbers = torch.randn(*shape[:2], (like.planes + like.has_offsets) * like.tile_rows, generator=generator, **REAL)
    packed = numbers.to(like.scale_dtype).contiguous().view(torch.int32)
    tiles = torch.cat([words, packed], 2)
    return RowTiles(tiles, ROWS, columns, group_size, like.planes, like.has_offsets, like.scale_dtype)


def relative_error(result: Tensor, x: Tensor, dense: Tensor) -> float:
    """Return the largest |result - x @ dense^T| / (|row| |x|); 1 for a difference where both norms are zero.

    Args:
        result: [rows, out].
        x: [rows, columns].
        dense: [out, columns].
    """
    wide, weight = x.double(), dense.double()
    difference = (result.double() - wide @ weight.T).abs()
    bound = wide.norm(dim=1).unsqueeze(1) * weight.norm(dim=1)
    relative = torch.where(bound > 0, difference / bound, (difference > 0).double())
    # A result that is no number must not pass for a small error.
    return float(relative.nan_to_num(nan=float("inf")).max())


def _compare_sparse(instruction_set: InstructionSet) -> str:
    generator = torch.Generator("cpu").manual_seed(0)
    sparse, length = random_sparse_codes(ROWS, 96, generator)
    x = torch.randn(ACTIVATION_ROWS, length, generator=generator, **REAL)
    dense = sparse.dense(length)
    batched = relative_error(sparse_product(x, sparse, instruction_set), x, dense)
    single = relative_error(sparse_product(x[:1], sparse, instruction_set), x[:1], dense)
    reference = relative_error(reference_sparse_product(x, sparse), x, dense)
    error = max(batched, single, reference)
    return f"sparse: error {error:.1e}" if error > TOLERANCE else ""


def random_sparse_codes(rows: int, length: int, generator: torch.Generator) -> tuple[SparseCodes, int]:
    """Return random sparse weights, some rows of them empty, and the columns of their matrix."""
    share = torch.rand(rows, 1, generator=generator, **REAL)
    kept = torch.rand(rows, length, generator=generator, **REAL) < share * (share > 0.1)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), kept.sum(1).cumsum(0)]).int()
    columns = kept.nonzero()[:, 1].int()
    codes = torch.randint(0, 256, (len(columns),), device="cpu", generator=generator).to(torch.uint8)
    zero_points = torch.randint(0, 256, (rows,), device="cpu", generator=generator).float()
    return SparseCodes(starts, columns, codes, torch.randn(rows, generator=generator, **REAL), zero_points), length
