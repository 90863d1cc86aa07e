"""Numbers about the zones of a residual-binary weight, and where its bits go."""

from __future__ import annotations

from torch import Tensor

from lowbit import QuantizedWeight, hookimpl
from lowbit_billm.format import ResidualBinaryWeight


@hookimpl
def lowbit_diagnostics(quantized: QuantizedWeight) -> dict[str, float]:
    """Return the shares of salient columns and of sparse weights, and the bits a weight of every part.

    Shares are of all weights; bits do not count what fills the last byte of a plane's row.
    """
    if not isinstance(quantized, ResidualBinaryWeight):
        return {}
    weights = max(1, quantized.signs.numel())

    def bits(*parts: Tensor) -> float:
        return (
            sum(part.numel() * (1 if part.element_size() == 1 else 8 * part.element_size()) for part in parts) / weights
        )

    rest = quantized.shared_plane & ~quantized.salient_columns
    return {
        "salient_column_share": quantized.salient_columns.float().mean().item(),
        "sparse_share": rest.sum().item() / weights,
        "salient_group_share": quantized.salient_groups.sum().item() / weights,
        "sign_bits": bits(quantized.signs),
        "shared_plane_bits": bits(quantized.shared_plane),
        "column_flag_bits": bits(quantized.salient_columns),
        "salient_group_bits": bits(quantized.salient_groups),
        "row_scale_bits": bits(quantized.scales),
        "mean_bits": bits(quantized.means),
        "column_scale_bits": bits(quantized.column_scales, quantized.salient_column_scales),
    }
