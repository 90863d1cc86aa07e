"""Signed binary weights in zones as bit planes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit import BitPlanes

MOST_PLANES = 3
"""Planes that one part of a plane form may have."""

Pair = tuple[Tensor, Tensor]
"""Something for each of two zones."""


@dataclass(frozen=True)
class SignedOrder:
    """One sign a weight, which adds scale * column scale * sign.

    Args:
        signs: bool [out, columns]; true is +1.
        scales: Of both zones, float32 [out, blocks] each.
        column_scales: Of both zones, float32 [columns] each, or `None` for ones.
    """

    signs: Tensor
    scales: Pair
    column_scales: Pair | None


@dataclass(frozen=True)
class Section:
    """Columns with the same number of signs a weight: w = mean + the sum of all orders, in the zone of the weight.

    Args:
        zone: bool [out, columns]: whether a weight lies in the second zone, or `None` where there is only the first.
        means: Of both zones, float32 [out, blocks] each, or `None` for zeros.
        orders: At least one.
        block_size: Columns a block.
        columns: As in `BitPlanes`.
        present: float32 [columns], 0 for a column that does not belong to the section and 1 for the others; `None`
            where all do.
    """

    zone: Tensor | None
    means: Pair | None
    orders: tuple[SignedOrder, ...]
    block_size: int
    columns: Tensor | None = None
    present: Tensor | None = None

    def parts(self) -> Iterator[BitPlanes]:
        """Yield bit planes that add up to the section."""
        if any(order.column_scales is not None for order in self.orders):
            yield from self._scaled_parts()
        else:
            yield from self._plain_parts()

    def _plain_parts(self) -> Iterator[BitPlanes]:
        """Yield 2 * scale for a set sign in the zone of its weight, upon the least value of that zone."""
        first, second = (self._least(zone) for zone in (0, 1))
        terms = [(self._inside(order.signs, 0), 2 * order.scales[0]) for order in self.orders]
        if self.zone is not None:
            terms.append((self.zone, second - first))
            terms += [(self._inside(order.signs, 1), 2 * order.scales[1]) for order in self.orders]
        yield self._part(terms[:MOST_PLANES], first)
        for start in range(MOST_PLANES, len(terms), MOST_PLANES):
            yield self._part(terms[start : start + MOST_PLANES], None)

    def _scaled_parts(self) -> Iterator[BitPlanes]:
        """Yield the means, then each order in each zone: parts differ in what multiplies their columns."""
        if self.means is not None:
            everywhere = torch.ones_like(self.orders[0].signs)
            terms = [(everywhere, self.means[0])]
            if self.zone is not None:
                terms.append((self.zone, self.means[1] - self.means[0]))
            yield self._part(terms, None)
        for order in self.orders:
            first, second = order.scales
            columns = order.column_scales or (None, None)
            terms = [(self._inside(order.signs, 0), 2 * first)]
            if self.zone is not None:
                terms.append((self.zone, first))
            yield self._part(terms, -first, columns[0])
            if self.zone is not None:
                yield self._part([(self._inside(order.signs, 1), 2 * second), (self.zone, -second)], None, columns[1])

    def _least(self, zone: int) -> Tensor:
        """Return what a weight without a set sign stands for, float32 [out, blocks]."""
        total = torch.stack([order.scales[zone] for order in self.orders]).sum(0)
        return -total if self.means is None else self.means[zone] - total

    def _inside(self, signs: Tensor, zone: int) -> Tensor:
        if self.zone is None:
            return signs
        return signs & (self.zone if zone else ~self.zone)

    def _part(
        self, terms: list[tuple[Tensor, Tensor]], offsets: Tensor | None, column_scales: Tensor | None = None
    ) -> BitPlanes:
        if self.present is not None:
            column_scales = self.present if column_scales is None else self.present * column_scales
        planes, scales = zip(*terms, strict=True)
        return BitPlanes(planes, torch.stack(scales), offsets, self.block_size, self.columns, column_scales)


def compact_columns(chosen: Tensor, block_size: int) -> Pair:
    """Return the chosen columns, each block filled up with -1 to as many as the fullest has, and their ranks.

    Args:
        chosen: bool [in].
        block_size: Columns a block.

    Returns:
        Columns and ranks among the chosen ones, int64 [blocks * most] each; -1 for none in both.
    """
    indices = chosen.nonzero().flatten()  # [chosen]
    block = indices // block_size
    blocks = -(-len(chosen) // block_size)
    counts = torch.bincount(block, minlength=blocks)
    most = int(counts.max())
    rank = torch.arange(len(indices), device=chosen.device)
    place = block * most + rank - (counts.cumsum(0) - counts)[block]
    columns, ranks = (torch.full((blocks * most,), -1, device=chosen.device) for _ in range(2))
    columns[place], ranks[place] = indices, rank
    return columns, ranks
