"""Numbers about the planes of a dual-binary weight."""

from __future__ import annotations

from lowbit import QuantizedWeight, hookimpl
from lowbit_dbllm.format import DualBinaryWeight


@hookimpl
def lowbit_diagnostics(quantized: QuantizedWeight) -> dict[str, float]:
    """Return the share of ones in each plane, their mean sparsity, and the share of mirrored groups."""
    if not isinstance(quantized, DualBinaryWeight):
        return {}
    density1 = quantized.plane1.float().mean().item()
    density2 = quantized.plane2.float().mean().item()
    return {
        "plane1_density": density1,
        "plane2_density": density2,
        "sparsity": 1 - (density1 + density2) / 2,
        "mirrored_groups": (quantized.alpha1 < 0).float().mean().item(),
    }
