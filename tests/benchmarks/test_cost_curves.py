"""The cost curves: what is planned, fits, claims that can fail, the page's section, and one measurement for real."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lowbit.errors import LowbitError

BENCHMARK = "cost_curves"


@pytest.fixture
def report(benchmark_module: ModuleType) -> ModuleType:
    """The module that fits and renders."""
    return importlib.import_module("cost_curves_report")


def point(
    name: str, axis: str, place: float, seconds: float, memory: float, told: float | None = None
) -> dict[str, Any]:
    """Return a point as the benchmark writes it."""
    forecast = {"seconds": told, "memory": memory, "checkpoint": 10.0, "dry_run_seconds": 1.0}
    return {
        "label": f"{name} {axis}={place}",
        "name": name,
        "on": {axis: place},
        "forecast": None if told is None else forecast,
        "measured": {"seconds": seconds, "memory": memory, "checkpoint": 10.0},
    }


def document(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the benchmark writes."""
    return {
        "date": "2026-01-01",
        "command": "x",
        "threads": 1,
        "repeats": 1,
        "machine": "m",
        "versions": {"lowbit": "0"},
        "base": {"layers": 2},
        "points": points,
    }


def test_every_preset_is_planned_and_the_base_is_measured_once(benchmark_module: ModuleType) -> None:
    plans = yaml.safe_load(benchmark_module.CONFIG.read_text(encoding="utf-8"))
    assert all(set(plans[name]["axes"]) == {"layers", "hidden", "samples"} for name in ("default", "quick", "full"))
    for plan in plans.values():
        entries = benchmark_module.plan_points(plan)
        labels = [entry["label"] for entry in entries]
        assert len(labels) == len(set(labels))
        assert {axis for entry in entries for axis in entry["on"]} == {
            *plan["axes"],
            *(["wide"] if "wide" in plan else []),
            *(["cells"] if plan["cells"]["numbers"] else []),
        }
        (base,) = [entry for entry in entries if entry["name"] == "gptq" and entry.get("point") == plan["base"]]
        assert base["on"].keys() == plan["axes"].keys()
        assert not any("samples" in entry["on"] for entry in entries if entry["name"] == "rtn")


def test_lines_and_powers_are_found(report: ModuleType) -> None:
    points = [point("a", "layers", x, 3 + 2 * x, 100) for x in (2, 4, 8)]
    points += [point("a", "hidden", x, x**3, x**2) for x in (2, 4, 8)]
    layers, hidden = report.curves_of(points)
    assert layers.line == pytest.approx((3, 2, 1))
    assert layers.memory_ratio == 1
    assert hidden.exponent == pytest.approx(3)
    assert hidden.memory_exponent == pytest.approx(2)


def test_claims_hold_or_do_not(report: ModuleType) -> None:
    good = [point("a", "layers", x, 2 * x, 100 + x) for x in (2, 4, 8)]
    assert all(held for *_, held in report.claims_of(report.curves_of(good)))
    bent = [point("a", "layers", x, x**3, 100 * x) for x in (2, 4, 8)]
    assert not any(held for *_, held in report.claims_of(report.curves_of(bent)))
    whole = [point("dbllm distillation", "layers", x, x, 100 * x) for x in (2, 4, 8)]
    assert [claim for _, claim, *_ in report.claims_of(report.curves_of(whole))] == ["time linear in number of layers"]


def test_forecasts_are_counted_by_how_far_they_are_off(report: ModuleType) -> None:
    points = [point("a", "layers", 2, 10, 100, told=11), point("a", "layers", 4, 20, 100, told=30)]
    text = report.render(document(points))
    assert "Time: 1 of 2 forecasts within 25%" in text
    assert "Memory: 2 of 2" in text


def test_a_page_keeps_everything_outside_the_markers(report: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    report.update_docs(page, "new")
    content = page.read_text(encoding="utf-8")
    assert content.startswith("before\n")
    assert content.endswith("after\n")
    assert "new" in content
    assert "old" not in content
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(LowbitError, match="each once"):
        report.update_docs(page, "new")


def test_a_picture_has_a_panel_an_axis(report: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [point("a", axis, x, x, 100) for axis in ("layers", "hidden") for x in (1, 2)]
    report.draw(document(points), tmp_path / "c.svg")
    text = (tmp_path / "c.svg").read_text(encoding="utf-8")
    assert "number of layers" in text
    assert "hidden size" in text
    assert "cells of a bench" not in text


def test_a_point_is_measured_and_continued(benchmark_module: ModuleType, tmp_path: Path) -> None:
    plan = {
        "base": {"layers": 1, "hidden": 64, "samples": 2, "length": 16, "vocabulary": 50},
        "methods": ["rtn"],
        "axes": {"layers": [1]},
        "trainings": {},
        "training_axes": {},
        "cells": {"method": "rtn", "numbers": [], "limit": 2},
    }
    header = {"threads": 1, "repeats": 1, "base": plan["base"]}
    quiet = benchmark_module.Console(quiet=True)
    first = benchmark_module.measure_all(plan, tmp_path, header, quiet)
    (found,) = first["points"]
    assert found["forecast"]["checkpoint"] == pytest.approx(found["measured"]["checkpoint"], rel=0.3)
    assert found["measured"]["seconds"] > 0
    assert benchmark_module.measure_all(plan, tmp_path, header, quiet)["points"] == [found]
    assert json.loads((tmp_path / benchmark_module.POINTS).read_text(encoding="utf-8"))["points"] == [found]
    with pytest.raises(LowbitError, match="other threads"):
        benchmark_module.measure_all(plan, tmp_path, {**header, "threads": 2}, quiet)


def test_a_job_that_fails_says_why(benchmark_module: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="KeyError"):
        benchmark_module.run_job({"label": "x", "kind": "none", "threads": 1}, tmp_path)


def test_wide_layers_are_an_axis_of_their_own(benchmark_module: ModuleType, report: ModuleType) -> None:
    plan = yaml.safe_load(benchmark_module.CONFIG.read_text(encoding="utf-8"))["default"]
    wide = [entry for entry in benchmark_module.plan_points(plan) if report.WIDE in entry["on"]]
    assert [(entry["name"], entry["point"]["layers"]) for entry in wide[:3]] == [("rtn", 1), ("rtn", 2), ("rtn", 4)]
    assert {entry["point"]["hidden"] for entry in wide} == {plan[report.WIDE]["hidden"]}
    points = [point("a", report.WIDE, x, x, 100) for x in (1, 2, 4)]
    claims = {claim for _, claim, *_ in report.claims_of(report.curves_of(points))}
    assert claims == {f"time linear in {report.AXES[report.WIDE]}", f"memory flat in {report.AXES[report.WIDE]}"}
