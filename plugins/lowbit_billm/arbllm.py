"""ARB-LLM (arXiv 2410.03129): BiLLM's frame with alternating refined binarization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lowbit import unit_scale
from lowbit_billm.alternating import binarize_alternating
from lowbit_billm.calibrated import binarize_calibrated
from lowbit_billm.format import ResidualBinaryWeight
from lowbit_billm.frame import BlockBinarizationConfig, BlockBinarizationQuantizer, rounded_to
from lowbit_billm.groups import calibrated_split, salient_groups
from lowbit_billm.refinement import BinaryGroup, Refinement
from lowbit_billm.row_column import binarize_row_column
from lowbit_billm.zones import Zones


class ARBConfig(BlockBinarizationQuantizer.Config):
    """Options of ARB-LLM; those of the searches are BiLLM's, which the paper builds on."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            **BlockBinarizationConfig.presets["paper"],
            "mean_shift": True,
            "split_error": "weights",
            "epsilon": 0.0,
            "keep_best": True,
        },
        "code": {
            **BlockBinarizationConfig.presets["code"],
            "split_error": "outputs",
            "epsilon": 1e-8,
            "keep_best": False,
        },
    }

    variant: Literal["arb", "arb-x", "arb-rc"] = Field(
        "arb-rc", description="mean and scale a row; the same fitted to the inputs; scales of rows and of columns"
    )
    iterations: int = Field(15, ge=0, description="rounds of alternating updates")
    x_iterations: int = Field(15, ge=0, description="arb-x: rounds that fit means and scales to the inputs")
    column_group_bitmap: bool = Field(True, description="split salient columns in two groups as well (CGB)")
    split_error: Literal["weights", "outputs"] | None = Field(
        None, description="arb-x: whether the break-point is searched by the error of the weights or of the outputs"
    )
    mean_shift: bool | None = Field(
        None, description="subtract means in the searches; whether means are stored follows from the variant"
    )
    epsilon: float | None = Field(None, ge=0, description="added to the denominators of scales")
    keep_best: bool | None = Field(None, description="refuse an update that would raise the objective")


@dataclass(frozen=True)
class _Part:
    """Columns of a block whose weights are divided in two groups, or in one.

    Args:
        columns: Which, bool [columns].
        bits: The group of each weight, bool [out, those columns].
        groups: Group 0, and group 1 where there may be one.
    """

    columns: Tensor
    bits: Tensor
    groups: list[BinaryGroup]

    def signs(self) -> Tensor:
        """Return the signs of each weight by its group, bool [order, out, those columns]."""
        if len(self.groups) == 1:
            return self.groups[0].signs
        return torch.where(self.bits, self.groups[1].signs, self.groups[0].signs)


class ARBLLM(BlockBinarizationQuantizer):
    """Binarization whose means, scales and signs are refined in turn, each the best for the others.

    The published methods are ARB-LLM_X and ARB-LLM_RC, "arb-x" and "arb-rc" with the column-group bitmap. Zones are
    BiLLM's; `fidelity` says whose reading of its searches. The paper's own words on them are unverified here, and the
    reading as published takes those of BiLLM's paper, with means as ARB-LLM defines binarization (section 3.1).

    Rounding: means and scales are rounded to what is stored before the signs are chosen, except for "arb-x", whose
    signs are those of its first phase in the paper too. Objectives: the squared error of each group for "arb" and
    "arb-rc", Tr(R S R^T) with R the error of one group for "arb-x"; in exact arithmetic no update raises them.
    `keep_best` ensures it in floating point, a row at a time for "arb" and "arb-x", a group of a block at a time for
    "arb-rc". The code's `epsilon` can raise it for small weights, since it does not scale with them. Its further
    1e-10 in the denominators of "arb-x", far below the sums of squares of the inputs, is left out.

    What looks like a difference but is none: the code does not update the signs of first-order "arb-rc", whose scales
    are never negative, so that the best signs never change. A weight equal to its mean, or to 0 in "arb-rc", has sign
    +1 here; in the code it starts with 0.
    """

    name: ClassVar[str] = "arbllm"
    Config = ARBConfig

    def binarize(self, weight: Tensor, zones: Zones, config: Any, moments: Tensor | None) -> ResidualBinaryWeight:
        """Refine one block; weights are worked on near 1, exactly rescaled by a power of two."""
        unit = unit_scale(weight)
        how = _refinement(config, unit, weight.abs().amax(1))
        sparse = zones.sparse
        if config.variant == "arb-x" and config.split_error == "outputs" and moments is not None:
            sparse = calibrated_split(zones, moments, config.breakpoint, config.mean_shift, how)
        bits = sparse[:, :0]
        if config.column_group_bitmap:
            bits = salient_groups(zones, config.breakpoint, config.mean_shift)

        def part(columns: Tensor, bits: Tensor, order: Literal[1, 2]) -> _Part:
            values = weight[:, columns] / unit
            of_columns = None if moments is None else moments[columns][:, columns]
            masks = [~bits, bits] if bits.shape == values.shape else [torch.ones_like(values, dtype=torch.bool)]
            groups = [_binarize_group(values, mask, order, of_columns, config.variant, how) for mask in masks]
            return _Part(columns, bits, groups)

        rest = part(~zones.salient, sparse[:, ~zones.salient], 1)
        salient = part(zones.salient, bits, 2)
        return _assembled(rest, salient, unit, config)


def _refinement(config: Any, unit: float, largest: Tensor) -> Refinement:
    """Return how to refine a block: `unit` is what its weights were divided by, `largest` [out] each row's largest."""

    def stored(values: Tensor) -> Tensor:
        return rounded_to(config.scale_dtype, largest, values * unit) / unit

    def stored_columns(values: Tensor) -> Tensor:
        return rounded_to(config.scale_dtype, values.abs().amax() if values.numel() else values, values)

    return Refinement(
        iterations=config.iterations,
        calibrated_iterations=config.x_iterations,
        epsilon=config.epsilon,
        column_epsilon=config.epsilon / unit**2,
        keep_best=config.keep_best,
        stored=stored,
        stored_columns=stored_columns,
    )


def _binarize_group(
    values: Tensor, mask: Tensor, order: Literal[1, 2], moments: Tensor | None, variant: str, how: Refinement
) -> BinaryGroup:
    if variant == "arb-rc":
        return binarize_row_column(values, mask, order, how)
    if variant == "arb-x":
        return binarize_calibrated(values, mask, order, moments, how)
    return binarize_alternating(values, mask, order, how)


def _assembled(rest: _Part, salient: _Part, unit: float, config: Any) -> ResidualBinaryWeight:
    """Lay the groups of a block out as the format wants them."""
    shape = (len(rest.bits), len(rest.columns))
    signs = torch.empty(shape, dtype=torch.bool, device=rest.bits.device)
    shared = torch.empty_like(signs)
    signs[:, rest.columns], shared[:, rest.columns] = rest.signs()[0], rest.bits
    signs[:, salient.columns], shared[:, salient.columns] = salient.signs()
    groups = [*rest.groups, *salient.groups]
    means = torch.stack([group.mean for group in groups]) * unit  # [groups, out]
    row_column = config.variant == "arb-rc"
    column_scales = means.new_zeros(2 if row_column else 0, shape[1])
    second = means.new_zeros(0, salient.bits.shape[1])
    if row_column:
        column_scales[:, rest.columns] = torch.cat([group.column_scales for group in rest.groups])
        column_scales[:, salient.columns] = salient.groups[0].column_scales
        second = salient.groups[1].column_scales if len(salient.groups) == 2 else second
    return ResidualBinaryWeight(
        signs=signs,
        shared_plane=shared,
        salient_columns=salient.columns,
        salient_groups=salient.bits,
        scales=(torch.cat([group.row_scales for group in groups]) * unit).unsqueeze(2),  # [scales, out, 1]
        means=(means[:0] if row_column else means).unsqueeze(2),
        column_scales=column_scales,
        salient_column_scales=second,
        block_size=config.block_size,
    )
