"""What a quantizer costs a matrix, from timing it on random matrices of the same width and of fewer rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowbit.contracts import LayerStatistics, QuantizedWeight, StatisticsNeed, WeightQuantizer
from lowbit.modeling.layouts import packer_for
from lowbit.models import WeightTarget
from lowbit.pipeline.measuring import Line, Stopwatch, line_through, peak_bytes_of
from lowbit.quantization.one_target import Diagnose, quantize_target, report_target

LEAST_WEIGHTS = 2**20
"""Smaller samples do not occupy all threads."""
ROW_STEP = 64
HESSIAN_RANK = 64
WIDEST = 8192
"""Wider matrices with Hessians are extrapolated from a quarter and a half of their width: factoring takes its cube."""
CUBE, SQUARE = 8.0, 4.0
"""The most that twice the width can take of what is done once a matrix, and once a row."""


@dataclass(frozen=True)
class QuantizerCost:
    """What a quantizer costs matrices of one width, by their rows.

    Args:
        seconds: Of quantizing, reporting, and packing.
        peak_bytes: Working memory beside the matrix, its statistics and its result.
        largest_rows: The largest sample; more rows are extrapolated.
    """

    seconds: Line
    peak_bytes: Line
    largest_rows: int


@dataclass(frozen=True)
class QuantizerTrial:
    """Times a quantizer.

    Args:
        quantizer: Which.
        packer: Name of the recipe's packer.
        diagnose: Returns plugins' numbers about a weight.
        watch: Times.
        written_back: Whether the engine dequantizes the weight once more, for the blocks that follow.
    """

    quantizer: WeightQuantizer
    packer: str
    diagnose: Diagnose
    watch: Stopwatch
    written_back: bool
    _generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def measure(self, columns: int, rows: Sequence[int], budget: float) -> QuantizerCost:
        """Quantize one or two random matrices.

        Args:
            columns: Width of the matrices that the quantizer will meet.
            rows: Their numbers of rows.
            budget: Seconds that this may take, as far as the first, small sample allows.
        """
        if columns > WIDEST and self.quantizer.needs is StatisticsNeed.HESSIAN:
            quarter, half = (self.measure(columns // part, rows, budget / 3) for part in (4, 2))
            return _twice_as_wide(quarter, half)
        self._run(*self.matrix(ROW_STEP, min(columns, 256)))
        statistics = self._statistics(columns)
        most = max(rows)
        sizes = [min(most, _rounded(max(LEAST_WEIGHTS // columns, most // 16)))]
        timed = [self._sample(columns, sizes[0], statistics)]
        if sizes[0] < most:
            # What is left pays for rows at the pace of the first sample, which is no less than that of more rows.
            affordable = int((budget - timed[0][0]) / max(timed[0][0], 1e-9) * sizes[0])
            sizes.append(min(most, max(2 * sizes[0], _rounded(affordable))))
            timed.append(self._sample(columns, sizes[1], statistics))
        return QuantizerCost(
            line_through([(size, seconds) for size, (seconds, _) in zip(sizes, timed, strict=True)]),
            line_through([(size, peak) for size, (_, peak) in zip(sizes, timed, strict=True)]),
            sizes[-1],
        )

    def _sample(self, columns: int, rows: int, statistics: LayerStatistics | None) -> tuple[float, float]:
        """Return seconds and peak bytes of one matrix; the first of two runs is weighed, a short one timed again."""
        weight = self._weight(rows, columns)
        seconds: list[float] = []
        peak = peak_bytes_of(lambda: seconds.append(self._timed(weight, statistics)), self.watch.device)
        if seconds[0] < 1:
            seconds = [self.watch.typical(lambda: self._run(weight, statistics))]
        return seconds[0], float(peak)

    def _timed(self, weight: Tensor, statistics: LayerStatistics | None) -> float:
        return self.watch.once(lambda: self._run(weight, statistics))

    def matrix(self, rows: int, columns: int) -> tuple[Tensor, LayerStatistics | None]:
        """Return a random matrix, and statistics of random inputs as far as the quantizer needs any."""
        return self._weight(rows, columns), self._statistics(columns)

    def _weight(self, rows: int, columns: int) -> Tensor:
        weight = torch.randn(rows, columns, generator=self._generator).mul_(0.02)  # [rows, columns]
        return weight.to(self.watch.device)

    def _statistics(self, columns: int) -> LayerStatistics | None:
        """Return statistics of random inputs, as far as the quantizer needs any."""
        if self.quantizer.needs is StatisticsNeed.NONE:
            return None
        inputs = torch.randn(HESSIAN_RANK, columns, generator=self._generator).to(self.watch.device)
        second_moment = inputs.square().mean(0) + 1  # [columns]
        if self.quantizer.needs is StatisticsNeed.SECOND_MOMENT:
            return LayerStatistics(HESSIAN_RANK, second_moment)
        hessian = (inputs.T @ inputs).mul_(2 / HESSIAN_RANK)  # [columns, columns]
        hessian.diagonal().add_(2)
        return LayerStatistics(HESSIAN_RANK, second_moment, hessian)

    def _run(self, weight: Tensor, statistics: LayerStatistics | None) -> QuantizedWeight:
        """Do what the engine does with one matrix."""
        target = WeightTarget("trial", "trial", "weight", None, False, *weight.shape)
        made = quantize_target(target, weight, statistics, self.quantizer, 0)
        report_target(target, weight, made, made.quantized, None, self.diagnose)
        if self.written_back:
            made.quantized.dequantize()
        packer_for(made.quantized.format, self.packer).pack(made.quantized)
        return made.quantized


def measure_quantizers(
    uses: Mapping[tuple[int, int], tuple[WeightQuantizer, Sequence[int]]],
    make: Callable[[WeightQuantizer], QuantizerTrial],
    budget: float,
) -> dict[tuple[int, int], QuantizerCost]:
    """Measure every quantizer at every width that it will meet.

    Args:
        uses: Quantizer and rows of its matrices, by the quantizer's identity and their width.
        make: Returns what times a quantizer.
        budget: Seconds for all; wide matrices get more of them.
    """
    total = sum(columns for _, columns in uses)
    return {
        (identity, columns): make(quantizer).measure(columns, rows, budget * columns / total)
        for (identity, columns), (quantizer, rows) in uses.items()
    }


def _twice_as_wide(quarter: QuantizerCost, half: QuantizerCost) -> QuantizerCost:
    """Return the cost of twice the width of `half`, growing as from `quarter` to `half`."""

    def grown(before: Line, now: Line) -> Line:
        fixed = min(CUBE, max(1.0, now.fixed / max(before.fixed, 1e-12)))
        slope = min(SQUARE, max(1.0, now.slope / max(before.slope, 1e-12)))
        return Line(now.fixed * fixed, now.slope * slope)

    return QuantizerCost(
        grown(quarter.seconds, half.seconds), grown(quarter.peak_bytes, half.peak_bytes), half.largest_rows
    )


def _rounded(rows: int) -> int:
    return max(ROW_STEP, rows // ROW_STEP * ROW_STEP)
