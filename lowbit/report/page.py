"""The page: one HTML file that needs no network, runs no foreign code, and evaluates no text as code."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowbit.report.charts import Axes, bits_chart, blocks_chart, heat_chart, pareto_chart, training_chart
from lowbit.report.content import Content, label_of, page_data, run_data
from lowbit.report.details import details_of, recipe_text
from lowbit.report.plots import BARS, vega_lite_version
from lowbit.report.themes import theme_config

PACKAGE = "lowbit.report"
FIRST_SCRIPTS = ("table.js",)
LAST_SCRIPTS = ("charts.js", "sections.js")
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def render_page(content: Content) -> str:
    """Return the whole report as HTML.

    Args:
        content: What it shows.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    first = [Markup(_asset(name)) for name in FIRST_SCRIPTS]
    last = [Markup(_plot_library()), *(Markup(_asset(name)) for name in LAST_SCRIPTS)]
    return environment.get_template("report.html").render(
        content=content,
        table=content.table,
        details=[(row, label_of(row), details_of(row.result), recipe_text(row.result)) for row in content.table.rows],
        label_of=label_of,
        models=sorted({row.result.model for row in content.table.rows}),
        methods=sorted({row.result.method for row in content.table.rows if row.result.role != "parent"}),
        ways=sorted({row.run_with for row in content.table.rows} - {""}),
        bars=BARS,
        style=Markup(_asset("report.css")),
        first=first,
        last=last,
        policy=content_security_policy([*first, *last]),
        data=json_for_script(page_data(content)),
        runs=[json_for_script(one) for one in run_data(content)],
        charts=json_for_script(_charts()),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        lowbit_version=version("lowbit"),
    )


def json_for_script(value: Any) -> Markup:
    """Return JSON that is safe inside a script element: no text in it can end the element or begin another."""
    return Markup(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES))


def content_security_policy(scripts: list[Markup]) -> str:
    """Return a policy that lets the page run exactly these scripts, and reach nothing outside the file."""
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sha256(script: Markup) -> str:
    return base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def _charts() -> dict[str, Any]:
    """Return the specifications that the page fills with data, and the themes."""
    return {
        "pareto": pareto_chart(Axes()),
        "heat": heat_chart(),
        "training": training_chart(),
        "blocks": blocks_chart(),
        "bits": bits_chart(),
        "themes": {"light": theme_config("light"), "dark": theme_config("dark")},
    }


def _asset(name: str) -> str:
    return files(PACKAGE).joinpath("assets", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _plot_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which leaves the function `vegaEmbed`."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version())
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
