"""Who does what when several processes quantize one model; the same answer in each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowbit.contracts import StatisticsNeed, WeightQuantizer
from lowbit.models import WeightTarget


def own_samples(samples: int, rank: int, size: int) -> range:
    """Return the calibration samples that run through the blocks in one of several processes.

    Args:
        samples: How many there are.
        rank: The process.
        size: Number of processes; those that come first have one more where it does not divide.
    """
    start, stop = (-(-samples * number // size) for number in (rank, rank + 1))
    return range(start, stop)


def assign_targets(
    targets: Sequence[WeightTarget], quantizers: Mapping[str, WeightQuantizer], size: int
) -> dict[str, int]:
    """Return the rank that quantizes each target, by name: the dearest first, each to the process with least to do.

    Args:
        targets: What is to be quantized.
        quantizers: Quantizer by target name.
        size: Number of processes.
    """
    loads = [0] * size
    owners: dict[str, int] = {}
    costs = {target.name: _cost(target, quantizers[target.name]) for target in targets}
    for name in sorted(costs, key=lambda name: -costs[name]):
        rank = loads.index(min(loads))
        loads[rank] += costs[name]
        owners[name] = rank
    return owners


def _cost(target: WeightTarget, quantizer: WeightQuantizer) -> int:
    """Return a number that grows as the time to quantize a target: its weights, or what error compensation multiplies.

    Compensating a matrix takes about in^2 * out operations, after a factorization of the Hessian of about in^3.
    """
    if quantizer.needs is StatisticsNeed.HESSIAN:
        return target.in_features**2 * (target.in_features + target.out_features)
    return target.weights
