"""The plots as files: SVG and PNG, on a light and on a dark ground."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.durable import make_directory, write_whole
from lowbit.errors import LowbitError
from lowbit.report.charts import Axes, bits_chart, blocks_chart, heat_chart, pareto_chart, training_chart
from lowbit.report.content import Content, axis_title, item_rows, size_axes, size_of
from lowbit.report.layers import RELATIVE_ERROR, cells_of, layer_data
from lowbit.report.table import TableRow
from lowbit.report.themes import Theme, theme_config
from lowbit.report.training import block_points, model_points, training_data

logger = logging.getLogger(__name__)

WIDTH = 760
BARS = 40
PNG_SCALE = 2.0
NUMBERED_BLOCKS = 12
THEMES: tuple[Theme, ...] = ("light", "dark")


def vega_lite_version() -> str:
    """Return the version of Vega-Lite that the charts are written in.

    Raises:
        LowbitError: The installed vl-convert does not know it.
    """
    from importlib.metadata import version as installed

    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    if version not in vl_convert.get_vegalite_versions():
        raise LowbitError(
            f"altair {altair.__version__} writes Vega-Lite {version}, which vl-convert "
            f"{installed('vl-convert-python')} does not know: pip install --upgrade 'lowbit[report]'"
        )
    return version


def save_plots(content: Content, folder: Path) -> list[Path]:
    """Write every plot that there is data for, as SVG and PNG in both themes; return the files.

    A plot that cannot be drawn of what the results hold is left out with a warning.

    Raises:
        LowbitError: The folder cannot be written.
    """
    import vl_convert

    make_directory(folder)
    version = vega_lite_version()
    written = []
    for name, chart, data in _plots(content):
        for theme in THEMES:
            config = theme_config(theme, ground=True)
            drawn = {**chart, "width": WIDTH, "datasets": {key: list(rows) for key, rows in data.items()}}
            try:
                svg = vl_convert.vegalite_to_svg(drawn, vl_version=version, config=config, allowed_base_urls=[])
                png = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
            except (ValueError, RuntimeError) as error:
                logger.warning("the plot %s cannot be drawn: %s", name, " ".join(str(error).split())[:200])
                break
            stem = f"{name}{'' if theme == 'light' else '-dark'}"
            for path, content_bytes in ((folder / f"{stem}.svg", svg.encode()), (folder / f"{stem}.png", png)):
                _write(path, content_bytes)
                written.append(path)
    return written


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def _plots(content: Content) -> Iterator[tuple[str, dict[str, Any], Mapping[str, Sequence[Mapping[str, Any]]]]]:
    """Yield name, specification and data of each plot."""
    yield from _pareto(content)
    items = bits_items(content)
    if items:
        yield "bits", bits_chart(len({item["run"] for item in items})), {"items": items}
    if content.chosen is None:
        return
    result = content.table.rows[content.chosen].result
    layers = layer_data(result)
    if layers is not None:
        numbers = len(layers["blocks"]) <= NUMBERED_BLOCKS
        for name in layers["values"]:
            if name == RELATIVE_ERROR or name.endswith("density"):
                yield (
                    f"layers-{name}",
                    heat_chart(name.replace("_", " "), numbers, len(layers["kinds"])),
                    {"cells": cells_of(layers, name)},
                )
    training = training_data(result)
    if training is not None:
        for name, chart, points in (
            ("training", training_chart, model_points(training)),
            ("training-blocks", blocks_chart, block_points(training)),
        ):
            if points:
                yield name, chart(_spans_decades([point["loss"] for point in points])), {"curves": points}


def _pareto(content: Content) -> Iterator[tuple[str, dict[str, Any], Mapping[str, Sequence[Mapping[str, Any]]]]]:
    column = content.y_column
    if column is None:
        return
    rows = content.table.rows
    points: list[dict[str, Any]] = []
    parents: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        x, y = size_of(row, "file", rows), content.table.value(row, column)
        if y is None:
            continue
        if row.result.role == "parent":
            parents[(row.result.model, y)] = {"y": y, "label": f"parent {row.result.model}"}
        elif x is not None:
            points.append(
                {
                    "x": x,
                    "y": y,
                    "method": row.result.method,
                    "model": row.result.model,
                    "series": f"{row.result.method} {row.result.model}",
                    "settings": row.settings,
                    "seed": row.result.seed,
                    "run with": row.run_with,
                    "run": row.result.identity,
                }
            )
    if points:
        values = [point["y"] for point in points] + [parent["y"] for parent in parents.values()]
        log = _spans_decades(values)
        title = dict(size_axes(rows))["file"]
        models = len({point["model"] for point in points})
        axes = Axes(
            x=title,
            y=axis_title(column),
            log=log,
            lower_is_better=column.higher_is_better is False,
            several_models=models > 1,
            x_domain=_around([point["x"] for point in points]),
            y_domain=_around(values),
        )
        yield "pareto", pareto_chart(axes), {"points": points, "parents": list(parents.values())}


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) >= 10 * min(values)


def _around(values: Sequence[float]) -> tuple[float, float] | None:
    """Return a domain about one single value, of which a scale would have no length; `None` for several."""
    value = values[0]
    if value == 0 or any(other != value for other in values):
        return None
    low, high = sorted((0.9 * value, 1.1 * value))
    return low, high


def bits_items(content: Content) -> list[dict[str, Any]]:
    """Return the rows of the plot of items: the first runs of the table, each kind of file once."""
    found: dict[tuple[Any, ...], tuple[TableRow, list[dict[str, Any]]]] = {}
    for row in content.table.rows:
        items = item_rows(row)
        key = (row.result.method, row.result.model, *((item["item"], item["bytes"]) for item in items))
        if items and row.result.role != "parent" and len(found) < BARS:
            found.setdefault(key, (row, items))
    labels = _short_labels([row for row, _ in found.values()])
    return [
        {**item, "run": label, "place": place}
        for label, (_, items) in zip(labels, found.values(), strict=True)
        for place, item in enumerate(items)
    ]


def _short_labels(rows: Sequence[TableRow]) -> list[str]:
    """Return what bars are called: the method, the model where there are several, the run where that is not enough."""
    several = len({row.result.model for row in rows}) > 1
    names = [f"{row.result.method} · {row.result.model}" if several else row.result.method for row in rows]
    return [
        f"{name} · {row.result.identity}" if names.count(name) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]
