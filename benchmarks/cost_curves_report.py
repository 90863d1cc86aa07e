"""What the measurements of `cost_curves.py` say: lines, exponents, claims, forecasts and what came."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.durable import make_directory, write_text, write_whole
from lowbit.errors import LowbitError

LEAST_R_SQUARED, LARGEST_RATIO, TOLERANCE = 0.98, 1.15, 0.25
BEGIN, END = "<!-- cost curves: begin -->", "<!-- cost curves: end -->"
WIDE = "wide"
AXES = {
    "layers": "number of layers",
    WIDE: "number of layers of a 7B model's width",
    "hidden": "hidden size",
    "samples": "calibration sequences",
    "cells": "cells of a bench",
}


@dataclass(frozen=True)
class Curve:
    """One quantity along one axis.

    Args:
        method: What was run.
        axis: What changed.
        places: The axis's values, rising.
        seconds: Measured at each.
        memory: Peak bytes at each.
    """

    method: str
    axis: str
    places: tuple[float, ...]
    seconds: tuple[float, ...]
    memory: tuple[float, ...]

    @property
    def line(self) -> tuple[float, float, float]:
        """Intercept, slope and R^2 of time."""
        return fit_line(self.places, self.seconds)

    @property
    def exponent(self) -> float:
        """The power of the axis that time grows with, between its ends and least squares between."""
        return fit_line([math.log(x) for x in self.places], [math.log(y) for y in self.seconds])[1]

    @property
    def memory_exponent(self) -> float:
        """The same of memory."""
        return fit_line([math.log(x) for x in self.places], [math.log(max(1.0, y)) for y in self.memory])[1]

    @property
    def memory_ratio(self) -> float:
        """The largest memory over the smallest."""
        return max(self.memory) / max(1.0, min(self.memory))


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """Return intercept, slope and R^2 of the least-squares line."""
    slope, intercept = statistics.linear_regression(xs, ys)
    mean = statistics.fmean(ys)
    spread = sum((y - mean) ** 2 for y in ys)
    missed = sum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return intercept, slope, 1 - missed / spread if spread else 1.0


def curves_of(points: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """Sort measured points into curves; an axis with a single value makes none."""
    groups: dict[tuple[str, str], dict[float, Mapping[str, float]]] = {}
    for point in points:
        for axis, place in point["on"].items():
            groups.setdefault((point["name"], axis), {})[place] = point["measured"]
    return [
        Curve(
            name,
            axis,
            tuple(sorted(found)),
            tuple(found[place]["seconds"] for place in sorted(found)),
            tuple(found[place]["memory"] for place in sorted(found)),
        )
        for (name, axis), found in groups.items()
        if len(found) > 1
    ]


def claims_of(curves: Sequence[Curve]) -> list[tuple[str, str, str, bool]]:
    """Return every claim that is made of a curve: method, claim, what was found, and whether it holds."""
    claims = []
    for curve in curves:
        if curve.axis != "hidden":
            fit = curve.line[2]
            claims.append((curve.method, f"time linear in {AXES[curve.axis]}", f"R² {fit:.4f}", fit >= LEAST_R_SQUARED))
        if curve.axis != "hidden" and not curve.method.endswith("distillation"):
            ratio = curve.memory_ratio
            claims.append(
                (curve.method, f"memory flat in {AXES[curve.axis]}", f"max/min {ratio:.2f}", ratio <= LARGEST_RATIO)
            )
    return claims


def forecast_rows(points: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, float, float]]:
    """Return forecast and measured value of every point: name with place, quantity, forecast, measured."""
    return [
        (point["label"], quantity, point["forecast"][quantity], point["measured"][quantity])
        for point in points
        if point.get("forecast")
        for quantity in ("seconds", "memory", "checkpoint")
    ]


def render(document: Mapping[str, Any]) -> str:
    """Return the measurements as Markdown."""
    points, curves = document["points"], curves_of(document["points"])
    base = ", ".join(f"{key} {value}" for key, value in document["base"].items())
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        f"Measured {document['date']} by `{document['command']}`, {document['threads']} threads, "
        f"{document['machine']}, {versions}; medians of {document['repeats']}. Base: {base}.",
        "",
        "| method | axis | places | seconds | intercept s | slope s | R² | time exponent | peak MB | max/min | "
        "memory exponent |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for curve in curves:
        intercept, slope, fit = curve.line
        seconds = ", ".join(f"{value:.3g}" for value in curve.seconds)
        memory = ", ".join(f"{value / 1e6:.3g}" for value in curve.memory)
        places = ", ".join(f"{place:g}" for place in curve.places)
        lines.append(
            f"| `{curve.method}` | {AXES[curve.axis]} | {places} | {seconds} | {intercept:.2f} | {slope:.3g} | "
            f"{fit:.4f} | {curve.exponent:.2f} | {memory} | {curve.memory_ratio:.2f} | {curve.memory_exponent:.2f} |"
        )
    lines += ["", "| method | claim | found | holds |", "| --- | --- | --- | --- |"]
    lines += [f"| `{m}` | {c} | {found} | {'yes' if held else '**no**'} |" for m, c, found, held in claims_of(curves)]
    return "\n".join([*lines, "", *_forecasts(points), *_large(document.get("large", []))]) + "\n"


def _large(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of forecasts of models of real size."""
    if not entries:
        return []
    samples, length = entries[0]["tokens"]
    lines = [
        "",
        f"Forecasts for models of real size, {samples} x {length} calibration tokens; nothing of this was run:",
        "",
        "| model, method | hours | days | peak GB | working disk GB | checkpoint GB | dry run s | its memory GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in entries:
        told = entry["forecast"]
        sizes = " | ".join(f"{told[key] / 1e9:.3g}" for key in ("memory", "disk", "checkpoint"))
        hours = told["seconds"] / 3600
        lines.append(
            f"| `{entry['label']}` | {hours:.3g} | {hours / 24:.2g} | {sizes} | {told['dry_run_seconds']:.0f} | "
            f"{told['dry_run_memory'] / 1e9:.2g} |"
        )
    return lines


def _forecasts(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of forecasts and how far they were off."""
    titles = (
        "| run | seconds: forecast | measured | ratio | memory MB: forecast | measured | ratio | file ratio | "
        "dry run s |"
    )
    lines = [titles, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for point in points:
        told, took = point.get("forecast"), point["measured"]
        if not told:
            continue
        lines.append(
            f"| `{point['label']}` | {told['seconds']:.2f} | {took['seconds']:.2f} | {_ratio(told, took, 'seconds')} | "
            f"{told['memory'] / 1e6:.0f} | {took['memory'] / 1e6:.0f} | {_ratio(told, took, 'memory')} | "
            f"{_ratio(told, took, 'checkpoint')} | {told['dry_run_seconds']:.1f} |"
        )
    rows = forecast_rows(points)
    for quantity, name in (("seconds", "Time"), ("memory", "Memory"), ("checkpoint", "File size")):
        ratios = [told / max(1e-9, took) for _, of, told, took in rows if of == quantity]
        if ratios:
            within = sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)
            lines += [
                "",
                f"{name}: {within} of {len(ratios)} forecasts within {TOLERANCE:.0%} of what was measured; ratio "
                f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}.",
            ]
    return lines


def _ratio(told: Mapping[str, float], took: Mapping[str, float], quantity: str) -> str:
    return f"{told[quantity] / max(1e-9, took[quantity]):.2f}"


def update_docs(page: Path, text: str) -> None:
    """Replace what stands between the two comment markers of a page.

    Raises:
        LowbitError: The page lacks a marker.
    """
    content = page.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise LowbitError(f"{page} must have {BEGIN!r} and {END!r}, each once")
    before, _, rest = content.partition(BEGIN)
    write_text(page, f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw time and memory along every axis into an .svg file.

    Raises:
        LowbitError: matplotlib is absent, or there is nothing to draw.
    """
    curves = curves_of(document["points"])
    axes = [axis for axis in AXES if any(curve.axis == axis for curve in curves)]
    if not axes:
        raise LowbitError("there is nothing to plot: no axis has two values")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LowbitError("--plot needs matplotlib; install it with: pip install 'lowbit[report]'") from error
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "cost", "font.size": 8}):
        picture = Figure(figsize=(3.1 * len(axes), 5), facecolor="white", layout="constrained")
        panels = picture.subplots(2, len(axes), squeeze=False)
        names = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(curve.method for curve in curves))}
        for column, axis in enumerate(axes):
            for curve in (curve for curve in curves if curve.axis == axis):
                style = {"marker": "o", "markersize": 3, "color": names[curve.method], "label": curve.method}
                panels[0][column].plot(curve.places, curve.seconds, **style)
                panels[1][column].plot(curve.places, [value / 1e6 for value in curve.memory], **style)
            panels[1][column].set_xlabel(AXES[axis])
            for row in (0, 1):
                panels[row][column].set_ylim(0, 1.05 * panels[row][column].dataLim.ymax)
                panels[row][column].grid(color="#dddddd", linewidth=0.5)
        panels[0][0].set_ylabel("seconds")
        panels[1][0].set_ylabel("peak MB")
        shown = {
            label: line for panel in panels.flat for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        picture.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=6, frameon=False)
        make_directory(file.absolute().parent)
        write_whole(file, lambda path: picture.savefig(path, format="svg", metadata={"Date": None}))
