"""The plots, by Altair: each a Vega-Lite specification that names its data and is filled by the page or for a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

LABELLED_SERIES = 12
"""Up to so many pairs of method and model, each has its label; of more, only those no other point beats."""


ROW = 26
"""Pixels of a row of a heat map and of a bar."""


@dataclass(frozen=True)
class Axes:
    """The axes of the plot of quality against size, as the page or the command line chose them."""

    x: str = "x"
    y: str = "y"
    log: bool = False
    lower_is_better: bool = True
    several_models: bool = True
    x_domain: tuple[float, float] | None = None
    y_domain: tuple[float, float] | None = None


def pareto_chart(axes: Axes) -> dict[str, Any]:
    """Return quality against size: rows `points` with x, y and who they are, `parents` with y and a label."""
    best = "min" if axes.lower_is_better else "max"
    order: Literal["ascending", "descending"] = "ascending" if axes.lower_is_better else "descending"
    x = alt.X("x:Q", title=axes.x, scale=_scale(False, axes.x_domain, padding=24), axis=alt.Axis(tickCount=8))
    y = alt.Y("y:Q", title=axes.y, scale=_scale(axes.log, axes.y_domain, padding=24), axis=alt.Axis(tickCount=7))
    # No quantized model is expected beyond its parent; there is room for the name.
    beyond: Literal["top", "bottom"] = "top" if axes.lower_is_better else "bottom"
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("method", "model", "settings", "seed", "run with", "run")]
    tooltip += [alt.Tooltip("x:Q", title=axes.x, format=".4~g"), alt.Tooltip("y:Q", title=axes.y, format=".4~g")]
    base = (
        alt.Chart(alt.NamedData(name="points"))
        .transform_window(
            best=f"{best}(y)",
            frame=[None, 0],
            sort=[alt.SortField("x", order="ascending"), alt.SortField("y", order=order)],
            groupby=["model"],
        )
        .transform_window(
            place="row_number()",
            sort=[alt.SortField("y", order=order)],
            groupby=["series"],
        )
        .transform_joinaggregate(series_count="distinct(series)", first_x="min(x)", last_x="max(x)")
    )
    front = (
        base.transform_filter("datum.y === datum.best")
        .mark_line(strokeDash=[2, 3], strokeWidth=1.2, interpolate="step-after", style="front", clip=True)
        .encode(x=x, y=y, detail="model:N")
        .properties(name="front")
    )
    shape = alt.Shape("model:N", legend=alt.Legend(title="model") if axes.several_models else None)
    points = (
        base.mark_point(filled=True, size=90, opacity=0.9)
        .encode(x=x, y=y, color=alt.Color("method:N", title="method"), shape=shape, tooltip=tooltip)
        .properties(name="points")
    )
    labels = (
        base.transform_filter(
            f"datum.place === 1 && (datum.series_count <= {LABELLED_SERIES} || datum.y === datum.best)"
        )
        .transform_calculate(at_right="datum.x - datum.first_x > 0.7 * (datum.last_x - datum.first_x)")
        .mark_text(
            align=alt.expr("datum.at_right ? 'right' : 'left'"),
            baseline="middle",
            dx=alt.expr("datum.at_right ? -9 : 9"),
            dy=-9,
        )
        .encode(x=x, y=y, text="method:N")
        .properties(name="labels")
    )
    parents = alt.Chart(alt.NamedData(name="parents"))
    lines = (
        parents.mark_rule(strokeDash=[6, 4], strokeWidth=1.5).encode(y=y, tooltip="label:N").properties(name="rules")
    )
    names = (
        parents.transform_window(place="row_number()", groupby=["label"])
        .transform_filter("datum.place === 1")
        .mark_text(align="left", baseline=beyond, dy=5 if axes.lower_is_better else -5, dx=4, style="parent")
        .encode(x=alt.value(0), y=y, text="label:N")
        .properties(name="parents")
    )
    return _specification(alt.layer(front, lines, names, points, labels).properties(height=380))


def heat_chart(title: str = "value", numbers: bool = True, kinds: int = 1) -> dict[str, Any]:
    """Return a heat map of rows `cells` with kind, block, value and how many layers a cell is the mean of."""
    base = (
        alt.Chart(alt.NamedData(name="cells"))
        .transform_joinaggregate(lowest="min(value)", highest="max(value)")
        .transform_calculate(
            share="datum.highest > datum.lowest ? (datum.value - datum.lowest) / (datum.highest - datum.lowest) : 0"
        )
    )
    x = alt.X("block:O", title="block", sort=None, axis=alt.Axis(labelAngle=0, labelOverlap=True, orient="bottom"))
    y = alt.Y("kind:N", title=None, sort=None, axis=alt.Axis(labelLimit=170))
    rectangles = base.mark_rect().encode(
        x=x,
        y=y,
        color=alt.Color(
            "value:Q",
            title=title,
            scale=alt.Scale(scheme="viridis", zero=False, nice=False),
            legend=alt.Legend(orient="top", gradientLength=160, titleLimit=320, format=".3~g"),
        ),
        tooltip=[
            alt.Tooltip("kind:N"),
            alt.Tooltip("block:N"),
            alt.Tooltip("value:Q", title=title, format=".4~g"),
            alt.Tooltip("layers:Q", title="layers averaged"),
        ],
    )
    layers = [rectangles.properties(name="cells")]
    if numbers:
        text = base.mark_text(fontSize=11).encode(
            x=x,
            y=y,
            text=alt.Text("value:Q", format=".3r"),
            color=alt.condition("datum.share > 0.6", alt.value("#101418"), alt.value("#ffffff")),
        )
        layers.append(text.properties(name="numbers"))
    return _specification(alt.layer(*layers).properties(height=ROW * kinds))


def training_chart(log: bool = True) -> dict[str, Any]:
    """Return the loss of training the whole model: rows `curves` with curve, step and loss."""
    base = alt.Chart(alt.NamedData(name="curves")).encode(
        x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)),
        y=alt.Y("loss:Q", title="loss", scale=_scale(log)),
        color=alt.Color("curve:N", title=None, sort=["training", "held out"], legend=alt.Legend(orient="top")),
        tooltip=["curve:N", "step:Q", alt.Tooltip("loss:Q", format=".4~g")],
    )
    lines = base.mark_line().properties(name="lines")
    looks = (
        base.transform_filter("datum.curve === 'held out'").mark_point(filled=True, size=50).properties(name="looks")
    )
    return _specification(alt.layer(lines, looks).properties(height=260))


def blocks_chart(log: bool = True) -> dict[str, Any]:
    """Return the loss of training block by block: rows `curves` with block, step and loss."""
    chart = (
        alt.Chart(alt.NamedData(name="curves"))
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)),
            y=alt.Y("loss:Q", title="loss of the block", scale=_scale(log)),
            color=alt.Color(
                "block:O", title="block", scale=alt.Scale(scheme="viridis"), legend=alt.Legend(orient="top")
            ),
            detail="block:N",
            tooltip=["block:O", "step:Q", alt.Tooltip("loss:Q", format=".4~g")],
        )
        .properties(height=260)
    )
    return _specification(chart)


def bits_chart(bars: int = 1) -> dict[str, Any]:
    """Return what each file consists of, in bits a weight: rows `items` with run, item, bits and bytes."""
    chart = (
        alt.Chart(alt.NamedData(name="items"))
        .mark_bar()
        .encode(
            x=alt.X("bits:Q", title="bits a weight of the model", stack="zero"),
            y=alt.Y("run:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
            color=alt.Color(
                "item:N", title=None, legend=alt.Legend(orient="top", columns=2, labelLimit=340), sort=None
            ),
            order=alt.Order("place:Q"),
            tooltip=["run:N", "item:N", alt.Tooltip("bits:Q", format=".4f"), alt.Tooltip("bytes:Q", format=",")],
        )
        .properties(height=ROW * bars)
    )
    return _specification(chart)


def _scale(log: bool, domain: tuple[float, float] | None = None, **options: Any) -> alt.Scale:
    """Return a scale that need not begin at zero; a logarithmic one cannot."""
    if domain is not None:
        options["domain"] = list(domain)
    return alt.Scale(type="log", **options) if log else alt.Scale(type="linear", zero=False, **options)


def _specification(chart: Any) -> dict[str, Any]:
    """Return a chart as a specification that is as wide as its place."""
    specification: dict[str, Any] = chart.properties(width="container").to_dict()
    # The configuration comes from the theme, and the schema's address would be the page's only link to a network.
    return {key: value for key, value in specification.items() if key not in ("config", "$schema")}
