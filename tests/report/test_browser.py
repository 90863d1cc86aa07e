"""The report in a real browser: opened from a file, sorted, filtered, by keyboard, dark, narrow, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from report import results

from lowbit.report.content import gather
from lowbit.report.numbers import MISSING
from lowbit.report.page import render_page
from lowbit.results.store import read_results

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
INTERACTIVE_SECONDS = 2.0


@dataclass
class Opened:
    """A page, and what it asked of the network and told the console."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def column(self, number: int) -> list[str]:
        """Return the first lines of a column's visible cells."""
        script = f"[...document.querySelectorAll('#runs tbody tr:not([hidden])')].map(r => r.cells[{number}].firstChild"
        return list(self.page.evaluate(f"{script}.textContent)"))

    def heading(self, title: str) -> Any:
        """Return the button of a heading."""
        return self.page.locator("#runs thead button", has_text=title).first

    def draw_all(self) -> None:
        """Bring every plot into view, and wait until it is drawn."""
        for plot in self.page.locator(".plot:visible").all():
            plot.scroll_into_view_if_needed()
            playwright.expect(plot).to_have_attribute("data-drawn", "1", timeout=15_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    named = os.environ.get("LOWBIT_TEST_CHROMIUM")
    path = named or next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium: set LOWBIT_TEST_CHROMIUM to one")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    results.write_mixed(folder)
    results.write(folder, 5, results.harness(13.0, 0.65), results.record("hostile", EVIL))
    return written(folder)


def written(folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(render_page(gather(read_results(folder))), encoding="utf-8")
    return path


def opened(browser: Any, report: Path, width: int = 1400, theme: str = "light") -> Opened:
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme).new_page()
    found = Opened(page)
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (found.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(report.as_uri())
    return found


@pytest.mark.parametrize(("width", "theme"), [(400, "dark"), (1400, "light")])
def test_everything_is_drawn_without_network_complaint_or_sideways_scrolling(
    browser: Any, report: Path, width: int, theme: str
) -> None:
    found = opened(browser, report, width, theme)
    found.draw_all()
    found.page.locator("details.made summary").first.click()
    assert found.page.locator(".plot svg").count() >= 5
    assert found.complaints == []
    assert found.requests == [report.as_uri()]
    assert found.page.evaluate("document.documentElement.scrollWidth") == width
    assert found.page.locator("img[src=x]").count() == 0


def test_a_hostile_name_is_shown_as_text_only(browser: Any, report: Path) -> None:
    found = opened(browser, report)
    found.draw_all()
    found.page.select_option("#run", index=next(n for n, m in enumerate(found.column(1)) if m == EVIL))
    found.page.locator("#pareto-plot svg path[aria-roledescription=point]").first.hover(force=True)
    assert EVIL in found.column(1)
    assert found.complaints == []


def test_headings_sort_by_mouse_and_keyboard_best_first_and_missing_last(browser: Any, report: Path) -> None:
    found = opened(browser, report)
    heading = found.heading("text word_perplexity [a]")
    column = heading.evaluate("button => button.parentElement.cellIndex")
    heading.click()
    assert found.column(column) == ["10.00", "11.00", "12.00", "13.00", "15.00", MISSING]
    heading.focus()
    found.page.keyboard.press("Enter")
    assert found.column(column) == ["15.00", "13.00", "12.00", "11.00", "10.00", MISSING]
    assert heading.locator("..").get_attribute("aria-sort") == "descending"
    found.page.keyboard.press("Space")
    assert heading.locator("..").get_attribute("aria-sort") == "ascending"
    assert found.page.locator("th[aria-sort]").count() == 1


def test_the_filters_narrow_the_table_and_the_plot(browser: Any, report: Path) -> None:
    found = opened(browser, report)
    found.draw_all()
    page = found.page
    page.fill("#filter", "planes")
    assert found.column(0) == ["planes"]
    assert page.locator("#count").inner_text() == "1 of 6 runs"
    playwright.expect(page.locator("#pareto-plot svg path[aria-roledescription=point]")).to_have_count(1)
    page.fill("#filter", "")
    page.select_option("#way", label="context 128")
    assert found.column(0) == ["round"]
    page.select_option("#way", "")
    page.uncheck("#parents")
    assert "parent" not in found.column(0)
    page.fill("#filter", "nothing like this")
    assert page.locator("#count").inner_text() == "None of 6 runs fits the filter"
    playwright.expect(page.locator("#pareto-plot .nothing")).to_be_visible()


def test_focus_goes_in_order_and_is_seen(browser: Any, report: Path) -> None:
    page = opened(browser, report).page
    visited = []
    for _ in range(16):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert visited[:2] == ["skip", "theme"]
    assert visited.index("filter") < visited.index("method") < visited.index("parents")
    page.focus("#theme")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_toggle_turns_page_and_plots_dark_and_back(browser: Any, report: Path) -> None:
    found = opened(browser, report)
    found.draw_all()
    page = found.page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#pareto-plot").scroll_into_view_if_needed()
    page.locator("#theme").evaluate("button => button.click()")
    assert page.evaluate(ground) != light
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    playwright.expect(page.locator("#pareto-plot")).to_have_attribute("data-drawn", "2")
    page.locator("#theme").evaluate("button => button.click()")
    assert page.evaluate(ground) == light
    assert found.complaints == []


def test_the_axes_of_the_plot_are_the_readers_choice(browser: Any, report: Path) -> None:
    found = opened(browser, report)
    found.draw_all()
    page = found.page
    plot = page.locator("#pareto-plot svg.marks")
    assert "lower is better" in plot.text_content()
    assert "parent small" in plot.text_content()
    page.select_option("#pareto-y", "mean accuracy 0")
    page.select_option("#pareto-x", "bytes")
    page.locator("#pareto-plot").scroll_into_view_if_needed()
    playwright.expect(plot).to_contain_text("higher is better")
    playwright.expect(plot).to_contain_text("file size in megabytes")
    assert found.complaints == []


def test_a_run_without_layers_or_training_says_so_in_words(browser: Any, report: Path) -> None:
    found = opened(browser, report)
    page = found.page
    assert "planes" in page.locator("#layers .run-name").inner_text()
    assert page.locator("#layers-nothing").is_hidden()
    methods = found.column(0)
    page.select_option("#run", index=methods.index("parent"))
    assert "no quantized layers" in page.locator("#layers-nothing").inner_text()
    page.select_option("#run", index=methods.index("round"))
    assert "without training" in page.locator("#training-nothing").inner_text()
    assert "no planes" in page.locator("#diagnostic-note").inner_text()
    assert found.complaints == []


def test_two_hundred_runs_can_be_sorted_within_two_seconds(browser: Any, tmp_path: Path) -> None:
    for number in range(200):
        record = results.record(f"method{number % 7}", f"model{number % 4}", seed=number, trained=number % 2 == 0)
        record["layers"] = results.layers(blocks=32)
        results.write(tmp_path, number, results.harness(10 + number / 10, 0.5 + number / 1000), record)
    report = written(tmp_path)
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
          const button = [...document.querySelectorAll("#runs thead button")].find(b => b.textContent.includes("acc"));
          button.click();
          window.sortedAfter = button.parentElement.getAttribute("aria-sort") && performance.now();
        });"""
    )
    page.goto(report.as_uri())
    seconds = page.evaluate("window.sortedAfter") / 1000
    print(f"200 runs, {report.stat().st_size / 1e6:.1f} MB: sorted {seconds:.2f} s after navigation began")
    assert page.locator("#runs tbody tr").count() == 200
    assert page.locator("#runs tbody tr").first.get_attribute("data-run") is not None
    assert 0 < seconds < INTERACTIVE_SECONDS


def test_a_name_with_several_spaces_can_be_chosen(browser: Any, tmp_path: Path) -> None:
    for number, model in enumerate(("one  name", "other")):
        results.write(tmp_path, number, results.harness(12.0, 0.7), results.record("a  method", model))
    target = tmp_path / "report.html"
    target.write_text(render_page(gather(read_results(tmp_path))), encoding="utf-8")
    found = opened(browser, target)
    found.page.select_option("#model", "one  name")
    found.page.select_option("#method", "a  method")
    assert found.page.locator("#count").inner_text() == "1 of 2 runs"
