"""BiLLM (arXiv 2402.04291): 1-bit weights, salient columns binarized twice."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowbit_billm.binarize import first_order, second_order
from lowbit_billm.format import ResidualBinaryWeight
from lowbit_billm.frame import BlockBinarizationQuantizer, rounded_to
from lowbit_billm.zones import Zones


class BiLLM(BlockBinarizationQuantizer):
    """Salient columns by structural search and residual binarization; a break-point splits the rest in two groups.

    In every block of columns and every row, concentrated weights, sparse weights and salient columns have a scale
    each, salient columns a second one for the residual. The block's error is compensated in later blocks.

    Where the authors' code differs from the paper there is a switch; `fidelity` sets them all. A weight equal to its
    group's mean has sign +1 here and 0 in the code; both occur only in groups whose scale is 0, or by coincidence.
    """

    name: ClassVar[str] = "billm"

    def binarize(self, weight: Tensor, zones: Zones, config: Any, moments: Tensor | None) -> ResidualBinaryWeight:
        """Binarize one block in closed form; the Hessian has done its part in the zones."""
        stored = partial(rounded_to, config.scale_dtype, weight.abs().amax(1))
        rest = ~zones.salient
        mean0, scale0 = first_order(weight, ~zones.sparse & rest, config.mean_shift, stored)
        mean1, scale1 = first_order(weight, zones.sparse, config.mean_shift, stored)
        salient = weight[:, zones.salient]
        mean2, scale2, scale3, sign, residual_sign = second_order(salient, config.mean_shift, stored)
        signs = weight >= torch.where(zones.sparse, mean1.unsqueeze(1), mean0.unsqueeze(1))
        signs[:, zones.salient] = sign
        shared = zones.sparse.clone()
        shared[:, zones.salient] = residual_sign
        means = torch.stack([mean0, mean1, mean2])  # [3, out]
        none = weight.new_zeros(0, weight.shape[1])
        return ResidualBinaryWeight(
            signs=signs,
            shared_plane=shared,
            salient_columns=zones.salient,
            salient_groups=shared[:, :0],
            scales=torch.stack([scale0, scale1, scale2, scale3]).unsqueeze(2),  # [4, out, 1]
            means=(means if config.mean_shift else means[:0]).unsqueeze(2),
            column_scales=none,
            salient_column_scales=none[:, :0],
            block_size=config.block_size,
        )
