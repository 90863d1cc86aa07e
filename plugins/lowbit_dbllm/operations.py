"""Operation counts of a dual-binary weight against dense 2-bit and full precision, from its planes as they are.

The paper says: about 20 % fewer operations than the best 2-bit method, over 14 times fewer than full precision. The
rule behind that is not known to us, so two are counted here, for the product of a matrix with one input vector.

Additions and multiplications, one operation each:

- dual-binary: an addition for each set bit of each plane; for each group and row two multiplications by its scales and
  two additions to the output, whether its bits are empty or not. The first addition to a sum of zero counts, too.
- dense 2-bit, symmetric, one scale a group: for each code a multiplication and an addition; for each group and row one
  multiplication and one addition. Three cheaper readings: zero codes cost nothing; a code costs one addition, of x or
  of 2x, which all rows share and which is not counted; and both together. A zero code is a weight with neither bit set.
- full precision: a multiplication and an addition a weight.

The rule of papers on binary networks, bit operations divided by 64 plus floating-point operations, where a
multiply-accumulate is one operation of either kind:

- dual-binary: a bit operation for each weight and plane, or for set bits only; two floating-point ones a group and row.
- dense 2-bit: two bit operations a weight, one floating-point operation a group and row.
- full precision: one floating-point operation a weight.

The divisor 64 stands for words of binary activations. Activations here are floating-point, so this second rule says how
such papers count, not what a processor does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_dbllm.format import DualBinaryWeight

WORD_BITS = 32
BIT_OPERATIONS = 64
"""Bit operations that count as one operation."""


@dataclass(frozen=True)
class PlaneCounts:
    """What both rules need to know of a weight.

    Args:
        weights: Elements of the matrix.
        set_bits: Ones in both planes together.
        nonzero: Weights with a bit in either plane.
        groups: Groups of all rows together.
    """

    weights: int
    set_bits: int
    nonzero: int
    groups: int


def count_planes(quantized: DualBinaryWeight) -> PlaneCounts:
    """Count the bits of both planes."""
    first, second = quantized.plane1, quantized.plane2
    return PlaneCounts(
        weights=first.numel(),
        set_bits=int(first.count_nonzero() + second.count_nonzero()),
        nonzero=int((first | second).count_nonzero()),
        groups=quantized.alpha1.numel(),
    )


def operation_counts(counts: PlaneCounts) -> dict[str, float]:
    """Return additions and multiplications a weight, and how many times those of dense 2-bit and full precision.

    Numbers that end in `_to_...` are quotients: below 1, dual-binary needs fewer operations.
    """
    weights, groups = counts.weights, counts.groups
    additions, multiplications = counts.set_bits + 2 * groups, 2 * groups
    operations = additions + multiplications
    others = {
        "full_precision": 2 * weights,
        "dense_2bit": 2 * weights + 2 * groups,
        "dense_2bit_skipping_zeros": 2 * counts.nonzero + 2 * groups,
        "dense_2bit_by_additions": weights + 2 * groups,
        "dense_2bit_by_additions_skipping_zeros": counts.nonzero + 2 * groups,
    }
    return {
        "additions_per_weight": additions / weights,
        "multiplications_per_weight": multiplications / weights,
        "operations_per_weight": operations / weights,
        **{f"{name}_operations_per_weight": count / weights for name, count in others.items()},
        **{f"operations_to_{name}": operations / count for name, count in others.items()},
    }


def binary_network_counts(counts: PlaneCounts) -> dict[str, float]:
    """Return such quotients by the rule of papers on binary networks: bit operations / 64 + floating-point operations.

    Full precision needs one operation a weight, so the quotients to it are the operations a weight, too.
    """
    weights, groups = counts.weights, counts.groups
    all_bits = 2 * weights / BIT_OPERATIONS + 2 * groups
    set_bits = counts.set_bits / BIT_OPERATIONS + 2 * groups
    dense = 2 * weights / BIT_OPERATIONS + groups
    return {
        "binary_network_operations_to_dense_2bit": all_bits / dense,
        "binary_network_operations_to_full_precision": all_bits / weights,
        "binary_network_set_bits_operations_to_dense_2bit": set_bits / dense,
        "binary_network_set_bits_operations_to_full_precision": set_bits / weights,
    }


def zero_words(plane: Tensor) -> float:
    """Return the share of a plane's 32-bit words that are zero, which a kernel could skip.

    Args:
        plane: bool [out, in]; a word is 32 columns of a row, and zeros fill the last one.
    """
    padded = torch.nn.functional.pad(plane, (0, -plane.shape[1] % WORD_BITS))
    words = padded.reshape(plane.shape[0], -1, WORD_BITS).any(-1)  # [out, words]
    return 1 - int(words.count_nonzero()) / words.numel()
