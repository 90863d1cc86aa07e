"""The ablation as a picture: a row a variant, a dot a seed, a bar the median, a line the base's median."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from ablation_report import Report, Row, figure

from lowbit.durable import make_directory, write_whole
from lowbit.errors import LowbitError

ROW_INCHES, WIDTH_INCHES, LABEL_INCHES, RIGHT_INCHES, TOP_INCHES, BOTTOM_INCHES = 0.21, 9.0, 3.3, 0.9, 0.65, 0.6
FONT_SIZE = 8
BASE_COLOR, OTHER_COLOR, LINE_COLOR, BAND_COLOR = "#c1440e", "#1f5a96", "#555555", "#eeeeee"
SHOWN_QUANTILE = 0.8
MARGIN = 0.5


def draw(report: Report, file: Path) -> None:
    """Draw every row into a file whose suffix says the format: .svg, .png or .pdf.

    Raises:
        LowbitError: matplotlib is absent, the suffix is another, or there is nothing to draw.
    """
    if file.suffix not in (".svg", ".png", ".pdf"):
        raise LowbitError(f"--plot {file}: the name must end in .svg, .png or .pdf")
    lines = _lines(report)
    if not any(math.isfinite(value) for row in report.rows for value in row.perplexities):
        raise LowbitError("there is nothing to plot: no cell has a finite perplexity")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LowbitError("--plot needs matplotlib; install it with: pip install 'lowbit[report]'") from error
    # Text stays text, and the same cells give the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ablation", "font.size": FONT_SIZE}):
        height = ROW_INCHES * len(lines) + TOP_INCHES + BOTTOM_INCHES
        picture = Figure(figsize=(WIDTH_INCHES, height), facecolor="white")
        axes = picture.add_axes(
            (
                LABEL_INCHES / WIDTH_INCHES,
                BOTTOM_INCHES / height,
                1 - (LABEL_INCHES + RIGHT_INCHES) / WIDTH_INCHES,
                1 - (TOP_INCHES + BOTTOM_INCHES) / height,
            )
        )
        _fill(axes, report, lines)
        make_directory(file.absolute().parent)
        metadata = {"Date": None} if file.suffix == ".svg" else None
        kind = file.suffix.removeprefix(".")
        write_whole(file, lambda path: picture.savefig(path, format=kind, dpi=120, metadata=metadata))


def _lines(report: Report) -> list[str | Row]:
    """Return headings and rows, from the top."""
    lines: list[str | Row] = []
    group = None
    for row in report.rows:
        if row.group != group:
            lines.append(row.group)
            group = row.group
        lines.append(row)
    return lines


def limits(report: Report) -> tuple[float, float]:
    """Return the shown range of perplexities; far outliers lie beyond it, so that small differences can be seen."""
    values = sorted(value for row in report.rows for value in row.perplexities if math.isfinite(value))
    lowest, largest = values[0], values[-1]
    middle = values[min(len(values) - 1, math.ceil(SHOWN_QUANTILE * len(values)) - 1)]
    highest = min(largest, middle + MARGIN * (middle - lowest)) if middle > lowest else largest
    room = 0.04 * (highest - lowest) or 0.01 * abs(lowest)
    return lowest - room, highest + room


def _fill(axes: Any, report: Report, lines: list[str | Row]) -> None:
    left, right = limits(report)
    base = report.reference("base")
    if base is not None and math.isfinite(base.median):
        finite = [value for value in base.perplexities if math.isfinite(value)]
        axes.axvspan(min(finite), max(finite), color=BAND_COLOR, zorder=0)
        axes.axvline(base.median, color=BASE_COLOR, linewidth=0.8, linestyle="--", zorder=1)
    for place, line in enumerate(lines):
        if isinstance(line, str):
            axes.axhline(place, color=BAND_COLOR, linewidth=0.8, zorder=0)
        else:
            _draw_row(axes, line, place, right)
    axes.set_xlim(left, right)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    labels = [line if isinstance(line, str) else line.title for line in lines]
    axes.set_yticks(range(len(lines)), labels)
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if isinstance(line, str) else "normal")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", top=True, labeltop=True)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("left", "right"):
        axes.spines[side].set_visible(False)
    cell = report.cells[0]
    axes.set_xlabel(f"{cell.metric.replace('_', ' ')} of {cell.task}, {report.plan['split']} (lower is better)")
    axes.set_title(
        f"{report.plan['model']}: dots are seeds, bars medians; dashed: the base's median",
        fontsize=FONT_SIZE + 1,
        pad=8,
    )


def _draw_row(axes: Any, row: Row, place: int, right: float) -> None:
    color = BASE_COLOR if row.is_base else OTHER_COLOR
    shown = [value for value in row.perplexities if value <= right]
    beyond = [value for value in row.perplexities if value > right]
    axes.plot(shown, [place] * len(shown), "o", color=color, markersize=4, alpha=0.7, markeredgewidth=0, zorder=3)
    if row.median <= right:
        axes.plot([row.median] * 2, [place - 0.32, place + 0.32], color=color, linewidth=1.6, zorder=4)
    if beyond:
        axes.plot([right], [place], ">", color=color, markersize=5, clip_on=False, zorder=3)
        text = figure(statistics.median(beyond))
        axes.annotate(
            text, (right, place), (6, 0), textcoords="offset points", va="center", color=color, annotation_clip=False
        )
