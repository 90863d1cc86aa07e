"""Colours and type of the plots, on white and on black; told apart by readers who do not see all colours."""

from __future__ import annotations

from typing import Any, Literal

Theme = Literal["light", "dark"]

# Okabe and Ito's eight colours (2008), the yellow and the black replaced by ones that show on both grounds.
LIGHT_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#aa3377", "#b07d00", "#3fa0d8", "#6a51a3", "#7f7f7f"]
DARK_COLOURS = ["#56b4e9", "#ff8c42", "#2fc79a", "#e79ac6", "#f0d24c", "#a3c9f1", "#b9a6f0", "#b5b5b5"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def theme_config(theme: Theme, ground: bool = False) -> dict[str, Any]:
    """Return a theme as a configuration of Vega-Lite.

    Args:
        theme: For a white or a black ground.
        ground: Whether the plot paints its ground itself, as a file must and a page must not.
    """
    dark = theme == "dark"
    text, muted, grid = ("#e8eaed", "#a9b1bb", "#343a42") if dark else ("#1b1f24", "#57606a", "#e3e6ea")
    colours = DARK_COLOURS if dark else LIGHT_COLOURS
    paper = "#14181d" if dark else "#ffffff"
    axis = {
        "labelColor": muted,
        "titleColor": text,
        "gridColor": grid,
        "domainColor": muted,
        "tickColor": muted,
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": 500,
        "titlePadding": 8,
    }
    return {
        "background": paper if ground else "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {
            "labelColor": text,
            "titleColor": muted,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "labelLimit": 220,
            "symbolSize": 90,
            "symbolBaseFillColor": muted,
            "symbolBaseStrokeColor": muted,
        },
        "title": {"color": text, "fontSize": 14, "fontWeight": 600, "anchor": "start", "subtitleColor": muted},
        "range": {"category": colours, "symbol": SHAPES},
        "text": {"color": text, "fontSize": 12},
        "rule": {"color": muted},
        "line": {"strokeWidth": 2},
        "style": {"parent": {"fill": muted, "fontSize": 12}, "front": {"stroke": muted}},
    }
