"""The report of hostile names in a real browser: nothing of them runs, and nothing is asked of the network."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz.test_escaping import EVIL, write_hostile

from lowbit.report.content import gather
from lowbit.report.page import render_page
from lowbit.results.store import read_results

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a browser without its own network."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("LOWBIT_TEST_CHROMIUM") or next((p for name in names if (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium: set LOWBIT_TEST_CHROMIUM to one")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield browser.new_page()
        browser.close()


def test_no_hostile_name_runs_or_asks_for_anything(page: Any, tmp_path: Path) -> None:
    write_hostile(tmp_path, EVIL)
    report = tmp_path / "report.html"
    report.write_text(render_page(gather(read_results(tmp_path))), encoding="utf-8")
    heard: list[str] = []
    page.on("request", lambda request: heard.append(request.url) if request.url != report.as_uri() else None)
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: (heard.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(report.as_uri())
    for plot in page.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
        playwright.expect(plot).to_have_attribute("data-drawn", re.compile("[1-9]"), timeout=15_000)
    for summary in page.locator("details.made summary").all()[:5]:
        summary.click()
    for place in (1, 5, 9):
        page.select_option("#run", index=place)
    assert heard == []
    assert page.locator("#runs tbody tr").count() == len(EVIL)
    assert page.locator("img[src=x], svg[onload], [onerror], [onfocus], a[href^=javascript]").count() == 0
