"""Numbers about the planes of a dual-binary weight."""

from __future__ import annotations

from lowbit import QuantizedWeight, hookimpl
from lowbit_dbllm.format import DualBinaryWeight
from lowbit_dbllm.operations import binary_network_counts, count_planes, operation_counts, zero_words


@hookimpl
def lowbit_diagnostics(quantized: QuantizedWeight) -> dict[str, float]:
    """Return densities, zeros, the share of mirrored groups, and operation counts by the rules of `operations.py`.

    `sparsity` is the share of bits that are not set, `zero_weights` that of weights with neither bit set.
    """
    if not isinstance(quantized, DualBinaryWeight):
        return {}
    counts = count_planes(quantized)
    return {
        "plane1_density": int(quantized.plane1.count_nonzero()) / counts.weights,
        "plane2_density": int(quantized.plane2.count_nonzero()) / counts.weights,
        "sparsity": 1 - counts.set_bits / (2 * counts.weights),
        "zero_weights": 1 - counts.nonzero / counts.weights,
        "plane1_zero_words": zero_words(quantized.plane1),
        "plane2_zero_words": zero_words(quantized.plane2),
        "mirrored_groups": (quantized.alpha1 < 0).float().mean().item(),
        **operation_counts(counts),
        **binary_network_counts(counts),
    }
