"""The residual-binary format: one sign a weight, a second one in salient columns, scales a row and block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lowbit import Bits, PlaneForm, QuantizedWeight, Scales
from lowbit_billm.planes import Pair, Section, SignedOrder, compact_columns

CONCENTRATED, SPARSE, SALIENT = 0, 1, 2
"""Zones of a block; with groups in salient columns, zone SALIENT + 1 is their second group."""


@dataclass(frozen=True)
class ResidualBinaryWeight(QuantizedWeight):
    """Signs with a mean and a scale for each row, block of columns and zone; two signs in salient columns.

    A weight outside the salient columns is mean + scale * sign, with mean and scale of its group: concentrated (group
    bit 0) or sparse (1). A weight in a salient column is mean + scale1 * sign + scale2 * residual sign. The group bit
    means nothing in a salient column and the residual sign nothing elsewhere, so both are kept in one plane.

    Optional parts have length 0 where a method has none: means; group bits of salient columns (which then have their
    own plane, as wide as there are salient columns); scales of columns, which multiply the scales of rows.

    Args:
        signs: The first sign, bool [out, in]; true is +1.
        shared_plane: Residual sign in salient columns, group bit elsewhere, bool [out, in].
        salient_columns: bool [in].
        salient_groups: Group bits of the salient columns, in order, bool [out, salient], or [out, 0].
        scales: [2 + 2 * salient zones, out, blocks]: concentrated, sparse, then both orders of each salient zone.
        means: [2 + salient zones, out, blocks]: concentrated, sparse, each salient zone; or [0, out, blocks].
        column_scales: [2, in]: outside salient columns for concentrated and sparse weights, inside for both orders of
            the first zone; or [0, in].
        salient_column_scales: [2, salient]: both orders of the second zone; or [0, salient], [0, 0].
        block_size: Columns a block; the last block may be shorter.
    """

    signs: Annotated[Tensor, Bits("out", "in")]
    shared_plane: Annotated[Tensor, Bits("out", "in", role="residual signs and masks")]
    salient_columns: Annotated[Tensor, Bits("in", role="column flags")]
    salient_groups: Annotated[Tensor, Bits("out", "grouped", role="masks")]
    scales: Annotated[Tensor, Scales("scale_zones", "out", "blocks")]
    means: Annotated[Tensor, Scales("mean_zones", "out", "blocks")]
    column_scales: Annotated[Tensor, Scales("column_orders", "in")]
    salient_column_scales: Annotated[Tensor, Scales("salient_orders", "grouped")]
    block_size: int
    format: ClassVar[str] = "residual-binary"

    @property
    def nominal_bits(self) -> float:
        """One bit a weight, two in salient columns (BiLLM, eq. 14, without what it calls storing)."""
        return 1.0 + self.salient_columns.float().mean().item()

    def dequantize(self) -> Tensor:
        """Return the weights as float32 [out, in]."""
        result = torch.empty(self.signs.shape, device=self.signs.device)
        grouped = 0
        for index, start in enumerate(range(0, result.shape[1], self.block_size)):
            columns = slice(start, min(start + self.block_size, result.shape[1]))
            salient = self.salient_columns[columns]
            part = slice(grouped, grouped + int(salient.sum())) if self.salient_groups.shape[1] else slice(0, 0)
            result[:, columns] = self._block(index, columns, salient, part)
            grouped = part.stop
        return result

    def plane_form(self) -> PlaneForm:
        """Return the salient columns, gathered block by block, and the others as sections of their own."""
        sections = []
        if not self.salient_columns.all():
            sections.append(self._rest())
        if self.salient_columns.any():
            sections.append(self._salient())
        return PlaneForm(self.shape, tuple(part for section in sections for part in section.parts()))

    def _rest(self) -> Section:
        """Return the columns that are not salient, in place."""
        columns = None
        if len(self.column_scales):
            columns = self.column_scales[CONCENTRATED].float(), self.column_scales[SPARSE].float()
        order = SignedOrder(self.signs, self._pair(self.scales, CONCENTRATED, SPARSE), columns)
        means = self._pair(self.means, CONCENTRATED, SPARSE) if len(self.means) else None
        present = (~self.salient_columns).float() if self.salient_columns.any() else None
        return Section(self.shared_plane, means, (order,), min(self.block_size, self.shape[1]), None, present)

    def _salient(self) -> Section:
        """Return the salient columns, as many a block as the block with the most has."""
        columns, ranks = compact_columns(self.salient_columns, self.block_size)
        used, column, rank = columns >= 0, columns.clamp(min=0), ranks.clamp(min=0)
        zone = self.salient_groups[:, rank] & used if self.salient_groups.shape[1] else None
        orders = []
        for order, plane in enumerate((self.signs, self.shared_plane)):
            both = None
            if len(self.column_scales):
                first = self.column_scales[order].float()[column]
                second = self.salient_column_scales[order].float()[rank] if len(self.salient_column_scales) else first
                both = first, second
            scales = self._pair(self.scales, SALIENT + order, SALIENT + 2 + order)
            orders.append(SignedOrder(plane[:, column] & used, scales, both))
        means = self._pair(self.means, SALIENT, SALIENT + 1) if len(self.means) else None
        size = len(columns) // self.scales.shape[2]
        return Section(zone, means, tuple(orders), size, columns)

    def _pair(self, values: Tensor, first: int, second: int) -> Pair:
        """Return the values of two zones, float32 [out, blocks] each; a missing second zone is the first."""
        return values[first].float(), values[second if second < len(values) else first].float()

    def _block(self, index: int, columns: slice, salient: Tensor, part: slice) -> Tensor:
        """Return one block [out, columns]; `part` is its share of the salient groups."""
        signs = _plus_minus(self.signs[:, columns])
        shared = self.shared_plane[:, columns]
        rest = ~salient
        block = torch.empty_like(signs)
        group = shared[:, rest]
        scale = self._chosen(group, (CONCENTRATED, SPARSE), index)
        if len(self.column_scales):
            both = self.column_scales[:, columns][:, rest].float()
            scale = scale * torch.where(group, both[SPARSE], both[CONCENTRATED])
        block[:, rest] = self._mean(group, (CONCENTRATED, SPARSE), index) + scale * signs[:, rest]

        residual = _plus_minus(shared[:, salient])
        group = self.salient_groups[:, part] if self.salient_groups.shape[1] else torch.zeros_like(shared[:, salient])
        value = self._mean(group, (SALIENT, SALIENT + 1), index)
        for order, sign in enumerate((signs[:, salient], residual)):
            scale = self._chosen(group, (SALIENT + order, SALIENT + 2 + order), index)
            if len(self.column_scales):
                first = self.column_scales[order, columns][salient].float()
                second = self.salient_column_scales[order, part].float() if len(self.salient_column_scales) else first
                scale = scale * torch.where(group, second, first)
            value = value + scale * sign
        block[:, salient] = value
        return block

    def _chosen(self, group: Tensor, zones: tuple[int, int], index: int) -> Tensor:
        """Return the scale of each weight [out, columns] whose group bit is given."""
        return _by_group(group, self.scales[:, :, index], zones)

    def _mean(self, group: Tensor, zones: tuple[int, int], index: int) -> Tensor:
        return _by_group(group, self.means[:, :, index], zones)


def _plus_minus(bits: Tensor) -> Tensor:
    return bits.float().mul_(2).sub_(1)


def _by_group(group: Tensor, values: Tensor, zones: tuple[int, int]) -> Tensor:
    """Return values[zone] [out] for each weight [out, columns]: the first zone where its group bit is 0."""
    if not len(values):
        return torch.zeros(group.shape, device=group.device)
    first = values[zones[0]].float().unsqueeze(1)
    if zones[1] >= len(values):
        return first.expand(group.shape)
    return torch.where(group, values[zones[1]].float().unsqueeze(1), first)


def join_blocks(blocks: Sequence[ResidualBinaryWeight], dtype: torch.dtype) -> ResidualBinaryWeight:
    """Join weights of one block each into the whole matrix.

    Args:
        blocks: Neighbouring blocks of columns, in order.
        dtype: Stored dtype of scales and means.
    """

    def joined(name: str, dim: int = -1) -> Tensor:
        return torch.cat([getattr(block, name) for block in blocks], dim)

    return ResidualBinaryWeight(
        signs=joined("signs"),
        shared_plane=joined("shared_plane"),
        salient_columns=joined("salient_columns"),
        salient_groups=joined("salient_groups"),
        scales=joined("scales").to(dtype),
        means=joined("means").to(dtype),
        column_scales=joined("column_scales").to(dtype),
        salient_column_scales=joined("salient_column_scales").to(dtype),
        block_size=blocks[0].block_size,
    )
