"""Random row tiles, the matrices that they stand for, and how far a product may be off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies
from torch import Tensor

from lowbit import RowTiles, to_row_tiles


@dataclass(frozen=True)
class TileCase:
    """A product to compute.

    Args:
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        group_size: Columns a group.
        planes: Number of planes.
        has_offsets: Whether there are offsets.
        scale_dtype: Dtype of the scales.
        activations: Rows of activations.
        seed: Of all numbers.
    """

    rows: int
    columns: int
    group_size: int
    planes: int = 2
    has_offsets: bool = False
    scale_dtype: torch.dtype = torch.float16
    activations: int = 1
    seed: int = 0

    def tiles(self) -> tuple[RowTiles, Tensor]:
        """Return random tiles, and their matrix as float64 [rows, columns]."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = self.rows + 16  # one tile more than wanted, so that slices of the words are what is multiplied
        groups = -(-self.columns // self.group_size)
        planes = tuple(torch.rand(rows, self.columns, generator=generator) < 0.5 for _ in range(self.planes))
        # Planes differ so much in scale that no weight is a small difference of large terms.
        sizes = torch.tensor([4.0**plane for plane in range(self.planes)]).reshape(-1, 1, 1)
        scales = (sizes * self._signed((self.planes, rows, groups), generator)).to(self.scale_dtype)
        offsets = 0.25 * self._signed((rows, groups), generator)
        offsets = offsets.to(self.scale_dtype) if self.has_offsets else None
        wide = to_row_tiles(planes, scales, offsets, self.group_size, self.scale_dtype)
        tiles = RowTiles(
            wide.words[: -(-self.rows // 16)],
            self.rows,
            self.columns,
            self.group_size,
            self.planes,
            self.has_offsets,
            self.scale_dtype,
        )
        group = torch.arange(self.columns) // self.group_size
        dense = sum(scale.double()[:, group] * plane.double() for scale, plane in zip(scales, planes, strict=True))
        dense = dense if offsets is None else dense + offsets.double()[:, group]
        return tiles, torch.as_tensor(dense)[: self.rows]

    def _signed(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return signs * (0.75 + 0.5 * torch.rand(shape, generator=generator))

    def x(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return random activations [activations, columns]."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.activations, self.columns, generator=generator).to(dtype)


KINDS = (
    (2, False, torch.float16, (33, 40, 64)),
    (2, True, torch.float32, (33, 40, 64)),
    (1, False, torch.bfloat16, (1, 7, 16, 32)),
    (1, True, torch.float16, (1, 7, 16, 32)),
    (3, False, torch.float32, (100, 128)),
    (3, True, torch.bfloat16, (65, 96)),
    (2, True, torch.bfloat16, (130, 160)),
    (3, True, torch.float16, (500, 512)),
    (1, True, torch.float32, (150, 160)),
)
"""Planes, offsets, dtype of scales and group sizes that share compiled code."""


@strategies.composite
def tile_cases(draw: strategies.DrawFn, largest: int = 300, activations: int = 40) -> TileCase:
    """Draw cases: one row, one column, groups of any size, larger than the matrix too."""
    planes, has_offsets, scale_dtype, group_sizes = draw(strategies.sampled_from(KINDS))
    sizes = strategies.one_of(strategies.integers(1, 3), strategies.integers(1, largest))
    rows, columns = draw(sizes), draw(sizes)
    count = draw(strategies.one_of(strategies.integers(1, 4), strategies.integers(1, activations)))
    group_size = draw(strategies.sampled_from(group_sizes))
    seed = draw(strategies.integers(0, 2**20))
    return TileCase(rows, columns, group_size, planes, has_offsets, scale_dtype, count, seed)


def worst_error(result: Tensor, x: Tensor, dense: Tensor) -> float:
    """Return the largest |result - x @ dense^T| as a share of |row| |x|."""
    wide, weight = x.double(), dense.double()
    difference = (result.double() - wide @ weight.T).abs()
    bound = wide.norm(dim=1).unsqueeze(1) * weight.norm(dim=1)
    assert bool(torch.isfinite(result).all())
    return float((difference / bound.clamp_min(1e-6)).max())
