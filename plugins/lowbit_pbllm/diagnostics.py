"""Numbers about the salient weights of a partially binarized matrix."""

from __future__ import annotations

from lowbit import QuantizedWeight, hookimpl
from lowbit_pbllm.format import IndexedPartialBinaryWeight, PartialBinary


@hookimpl
def lowbit_diagnostics(quantized: QuantizedWeight) -> dict[str, float]:
    """Return the share of salient weights, the bits a weight of their mask, and whether it is stored as gaps."""
    if not isinstance(quantized, PartialBinary):
        return {}
    return {
        "salient_share": quantized.salient_share,
        "mask_bits": quantized.mask_bits,
        "indexed": float(isinstance(quantized, IndexedPartialBinaryWeight)),
    }
