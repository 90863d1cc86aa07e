"""`CpuBitPlanes`: products with packed bit planes on the processor, without expanding them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit import (
    BitPlanes,
    Kernel,
    LowbitError,
    PackedProduct,
    PackedWeight,
    Packer,
    RowTiles,
    SparseCodes,
    Support,
    Workload,
    to_row_tiles,
)
from lowbit_cpu.argument_checks import check_bias, check_sparse_arguments, check_sparse_ranges, check_width
from lowbit_cpu.instruction_sets import missing_for_rounded
from lowbit_cpu.jit import missing_compiler

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class PlanesProduct:
    """The product with one part of bit planes.

    Args:
        tiles: The planes.
        length: Columns of the matrix, which activations must have.
        columns: Which activation each column of the planes takes, int64; one past the last for none. `None` if they
            are taken as they come.
        column_scales: What each of these is multiplied by, float32, or `None`.
        rounded: Whether activations may be rounded to eight bits.
    """

    tiles: RowTiles
    length: int
    columns: Tensor | None = None
    column_scales: Tensor | None = None
    rounded: bool = False

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias with the dtype of `x`.

        Raises:
            ValueError: `x` or `bias` has another width than the matrix.
        """
        check_width(x, self.length)
        if self.columns is not None:
            x = torch.nn.functional.pad(x, (0, 1)).index_select(-1, self.columns)
        if self.column_scales is not None:
            x = x * self.column_scales
        tiles = self.tiles
        operators = torch.ops.lowbit_cpu
        multiply = operators.row_tiles_linear_rounded if self.rounded else operators.row_tiles_linear
        result: Tensor = multiply(
            x,
            tiles.words,
            bias,
            tiles.rows,
            tiles.columns,
            tiles.group_size,
            tiles.planes,
            tiles.has_offsets,
            tiles.scale_dtype,
        )
        return result


@dataclass(frozen=True, eq=False)
class SummedProduct:
    """The sum of the products with all parts of a plane form, in float32 until the end.

    Args:
        parts: The dense parts.
        sparse: Single weights on top, or `None`.
        rows: Rows of the matrix.
        length: Columns of the matrix, which activations must have.
    """

    parts: tuple[PlanesProduct, ...]
    sparse: SparseCodes | None
    rows: int
    length: int

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x @ W^T + bias with the dtype of `x`.

        Raises:
            ValueError: `x` or `bias` has another width than the matrix.
        """
        check_width(x, self.length)
        check_bias(x, bias, self.rows)
        wide = x.float()
        total = wide.new_zeros(*x.shape[:-1], self.rows) if bias is None else bias.float()
        for part in self.parts:
            total = total + part(wide, None)
        if self.sparse is not None:
            sparse = self.sparse
            total = total + torch.ops.lowbit_cpu.sparse_linear(
                wide, sparse.row_starts, sparse.columns, sparse.codes, sparse.scales, sparse.zero_points, True
            )
        return total.expand(*x.shape[:-1], self.rows).to(x.dtype)


class CpuBitPlanes(Kernel):
    """Exact products with bit planes by table look-ups, compiled for the processor at hand; float32 accumulation."""

    name: ClassVar[str] = "cpu-bit-planes"
    priority: ClassVar[int] = 100
    rounded: ClassVar[bool] = False

    def supports(self, workload: Workload) -> Support:
        """Serve floating-point activations on the CPU where the weight is bit planes and llvmlite is installed."""
        if workload.device.type != "cpu":
            return Support(False, f"runs on cpu, not on {workload.device.type}")
        if workload.dtype not in DTYPES:
            return Support(False, f"takes float32, bfloat16 and float16 activations, not {workload.dtype}")
        if reason := missing_compiler():
            return Support(False, reason)
        has_tiles = type(workload.packer).row_tiles is not Packer.row_tiles
        if not has_tiles and not workload.format_class.has_plane_form(workload.spec):
            return Support(
                False,
                f"this weight of format {workload.spec.format!r} has no plane form, "
                f"and packer {workload.packer.name!r} no row tiles",
            )
        return Support(True)

    def bind(self, packed: PackedWeight, workload: Workload) -> PackedProduct:
        """Arrange the weight, compile the code for it and compare that code with torch.

        Raises:
            LowbitError: The weight is no sum of bit planes, its parts do not fit its shape, or the compiled code is
                wrong.
        """
        from lowbit_cpu import operators  # noqa: F401  (defines torch.ops.lowbit_cpu)
        from lowbit_cpu.self_check import check_row_tiles, check_sparse

        tiles = workload.packer.row_tiles(packed)
        if tiles is not None:
            check_row_tiles(tiles, self.rounded)
            return PlanesProduct(tiles, tiles.columns, rounded=self.rounded)
        form = workload.packer.unpack(packed, workload.format_class).plane_form()
        if form is None:
            raise LowbitError(f"this weight of format {workload.spec.format!r} is no sum of bit planes")
        rows, length = form.shape
        sparse = None if form.sparse is None else _checked_sparse(form.sparse, rows, length)
        parts = tuple(_arranged(part, (rows, length), self.rounded) for part in form.parts)
        for part in parts:
            check_row_tiles(part.tiles, self.rounded)
        if sparse is None and len(parts) == 1 and parts[0].column_scales is None:
            return parts[0]
        if sparse is not None:
            check_sparse()
        return SummedProduct(parts, sparse, rows, length)


class CpuBitPlanesInt8(CpuBitPlanes):
    """Faster and approximate: sums of four activations are rounded to eight bits, with a scale for each group.

    For normally distributed activations the result is off by 0.7 to 1 % of its norm (groups of 64 to 160 columns).
    Single weights beside the planes are multiplied exactly. It is used only where it is asked for by name.
    """

    name: ClassVar[str] = "cpu-bit-planes-int8"
    priority: ClassVar[int] = -2000
    tolerance: ClassVar[float] = 0.02
    rounded: ClassVar[bool] = True

    def supports(self, workload: Workload) -> Support:
        """Serve what the exact kernel serves, on processors with AVX-512 VBMI and VNNI."""
        support = super().supports(workload)
        if support.served and (missing := missing_for_rounded()):
            return Support(False, missing)
        return support


def _arranged(part: BitPlanes, shape: tuple[int, int], rounded: bool) -> PlanesProduct:
    """Lay a part out in row tiles with float32 scales, which hold every scale exactly."""
    length = shape[1]
    _check_part(part, shape)
    offsets = None if part.offsets is None else part.offsets.float()
    tiles = to_row_tiles(part.planes, part.scales.float(), offsets, part.group_size, torch.float32)
    columns = part.columns
    if columns is not None:
        columns = torch.where(columns < 0, length, columns.long())
    return PlanesProduct(tiles, length, columns, part.column_scales, rounded)


def _check_part(part: BitPlanes, shape: tuple[int, int]) -> None:
    rows, length = shape
    width = length if part.columns is None else len(part.columns)
    if any(plane.shape != (rows, width) for plane in part.planes):
        found = [tuple(plane.shape) for plane in part.planes]
        raise LowbitError(f"expected bit planes of shape {(rows, width)} for a matrix of shape {shape}, got {found}")
    if part.column_scales is not None and part.column_scales.shape != (width,):
        raise LowbitError(f"expected {width} column scales, got shape {tuple(part.column_scales.shape)}")
    if part.columns is not None and width:
        first, last = (int(bound) for bound in part.columns.aminmax())
        if first < -1 or last >= length:
            raise LowbitError(f"expected bit planes of columns from -1 to {length - 1}, got {first} to {last}")


def _checked_sparse(sparse: SparseCodes, rows: int, length: int) -> SparseCodes:
    """Return the entries with the dtypes that the compiled code reads, so that products check and convert nothing."""
    like = torch.empty(0, length, dtype=torch.float32, device="cpu")
    try:
        check_sparse_arguments(like, sparse)
        check_sparse_ranges(sparse, length)
    except ValueError as error:
        raise LowbitError(f"the single weights beside the bit planes are damaged: {error}") from error
    if len(sparse.scales) != rows:
        raise LowbitError(f"expected single weights of {rows} rows, got {len(sparse.scales)}")
    return SparseCodes(
        sparse.row_starts.contiguous(),
        sparse.columns.contiguous(),
        sparse.codes.contiguous(),
        sparse.scales.float().contiguous(),
        sparse.zero_points.float().contiguous(),
    )
