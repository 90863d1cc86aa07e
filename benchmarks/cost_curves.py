"""Draws what quantization and training cost against layers, hidden size, calibration tokens and cells of a bench.

    python benchmarks/cost_curves.py -o FOLDER --quick                 # a few minutes
    python benchmarks/cost_curves.py -o FOLDER --threads 2             # about half an hour
    python benchmarks/cost_curves.py -o FOLDER --preset full           # up to an hour, 24 GiB
    python benchmarks/cost_curves.py -o FOLDER --render --plot docs/costs.svg --update_docs docs/costs.md

Models are LLaMA-shaped, of random numbers, written block by block. Every measurement is a process of its own, so that
none finds memory that another one left. Time is that of making the checkpoint; memory is the peak of anonymous memory
above what the process held when it began. In a process of its own before it, the forecast of `--dry_run` is made.

cost_curves.yaml says what is measured. Points are written as they come, and the same command continues where it
stopped. A line is fitted to time (R^2), a power to both; a claim that does not hold is said, and makes the exit code 1.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from command_line import run
from cost_curves_report import WIDE, claims_of, curves_of, draw, render, update_docs
from rich.console import Console

from lowbit.durable import make_directory, write_json, write_text
from lowbit.errors import LowbitError
from lowbit.pipeline.identity import package_versions

CONFIG = Path(__file__).with_suffix(".yaml")
WORKER = Path(__file__).with_name("cost_curves_worker.py")
POINTS, TABLE, JOB = "cost_curves.json", "cost_curves.md", "job.json"
NEED_NO_TOKENS = {"rtn", "dbllm-ptq"}
"""Methods that no calibration sequence changes anything for."""


def plan_points(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is measured: one entry a point, which may lie on several axes."""
    found: dict[str, dict[str, Any]] = {}
    for name, method, training, axis, place in _places(plan):
        point = {**plan["base"], axis: place}
        if axis == WIDE:
            point = {**plan["base"], "hidden": plan[WIDE]["hidden"], "layers": place}
        label = f"{name} " + " ".join(f"{key}={point[key]}" for key in ("layers", "hidden", "samples"))
        entry = found.setdefault(
            label,
            {"label": label, "name": name, "method": method, "training": training, "point": point, "on": {}},
        )
        entry["on"][axis] = place
    cells = plan["cells"]
    for number in cells["numbers"]:
        label = f"bench {cells['method']} cells={number}"
        found[label] = {
            "label": label,
            "name": f"bench {cells['method']}",
            "method": cells["method"],
            "limit": cells["limit"],
            "cells": number,
            "on": {"cells": number},
        }
    return list(found.values())


def _places(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any] | None, str, int]]:
    for method in plan["methods"]:
        for axis, places in plan["axes"].items():
            if axis != "samples" or method not in NEED_NO_TOKENS:
                yield from ((method, method, None, axis, place) for place in places)
    wide = plan.get(WIDE, {"methods": [], "layers": []})
    yield from ((method, method, None, WIDE, place) for method in wide["methods"] for place in wide["layers"])
    for stage, settings in plan["trainings"].items():
        for axis, places in plan["training_axes"].items():
            yield from ((f"dbllm {stage}", "dbllm", {stage: settings}, axis, place) for place in places)


def run_job(job: dict[str, Any], folder: Path) -> dict[str, float]:
    """Do one job in a process of its own, and return what it printed.

    Raises:
        LowbitError: It failed; the message is the end of what it said.
    """
    write_json(folder / JOB, job)
    done = subprocess.run([sys.executable, str(WORKER), str(folder / JOB)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LowbitError(f"{job['label']} ({job['kind']}) failed: {done.stderr.strip()[-600:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure_point(entry: dict[str, Any], folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Forecast and measure a point; of several measurements the medians count."""
    job = {**entry, "threads": threads}
    kind = "bench" if "cells" in entry else "measure"
    told = None if kind == "bench" else run_job({**job, "kind": "forecast"}, folder)
    took = [run_job({**job, "kind": kind}, folder) for _ in range(repeats)]
    medians = {key: statistics.median(run[key] for run in took) for key in took[0]}
    return {**entry, "forecast": told, "measured": medians, "runs": took}


def measure_all(plan: Mapping[str, Any], folder: Path, header: dict[str, Any], console: Console) -> dict[str, Any]:
    """Measure every point that the folder lacks, and return the whole document."""
    make_directory(folder)
    file = folder / POINTS
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"points": []}
    if known["points"] and any(known[key] != header[key] for key in ("threads", "repeats", "base")):
        raise LowbitError(f"{folder} holds measurements with other threads, repeats or base: use another -o")
    points = known["points"]
    done = {point["label"] for point in points}
    entries = plan_points(plan)
    document = {**header, "points": points, "large": known.get("large", [])}
    for number, entry in enumerate(entries, 1):
        if entry["label"] not in done:
            console.print(f"{number}/{len(entries)} {entry['label']}")
            points.append(measure_point(entry, folder, header["threads"], header["repeats"]))
            write_json(file, document)
    for job in plan_large(plan):
        if job["label"] not in {one["label"] for one in document["large"]}:
            console.print(f"forecast of {job['label']}")
            document["large"].append({**job, "forecast": run_job({**job, "threads": header["threads"]}, folder)})
            write_json(file, document)
    return document


def plan_large(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models of real size that are forecast, and by which methods."""
    large = plan.get("large", {"shapes": {}, "methods": [], "tokens": []})
    return [
        {
            "kind": "large",
            "label": f"{size} {method}",
            "size": size,
            "shape": shape,
            "method": method,
            "tokens": large["tokens"],
        }
        for size, shape in large["shapes"].items()
        for method in large["methods"]
    ]


def _header(plan: Mapping[str, Any], threads: int, repeats: int, command: str) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": command,
        "threads": threads,
        "repeats": repeats,
        "machine": _processor(),
        "versions": package_versions(),
        "base": plan["base"],
    }


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ())
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


@click.command(help=__doc__)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=CONFIG)
@click.option("--preset", default="default", show_default=True, help="Section of the configuration.")
@click.option("--quick", is_flag=True, help="The same as --preset quick.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Measurements of a point.")
@click.option("--render", "rendered", is_flag=True, help="Measure nothing; print what is there.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw into this .svg.")
@click.option("--update_docs", "page", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Page.")
def main(
    output: Path,
    config: Path,
    preset: str,
    quick: bool,
    threads: int,
    repeats: int,
    rendered: bool,
    plot: Path | None,
    page: Path | None,
) -> None:
    """Measure what is missing, fit, print, draw; the exit code is 1 where a claim does not hold."""
    preset = "quick" if quick else preset
    if rendered:
        if not (output / POINTS).is_file():
            raise LowbitError(f"there are no measurements in {output}")
        document = json.loads((output / POINTS).read_text(encoding="utf-8"))
    else:
        plans = yaml.safe_load(config.read_text(encoding="utf-8"))
        if preset not in plans:
            raise LowbitError(f"{config} has no section {preset!r}; it has {', '.join(plans)}")
        command = f"python benchmarks/cost_curves.py --preset {preset} --threads {threads} --repeats {repeats}"
        header = _header(plans[preset], threads, repeats, command)
        document = measure_all(plans[preset], output, header, Console(stderr=True))
    text = render(document)
    write_text(output / TABLE, text)
    click.echo(text)
    if plot is not None:
        draw(document, plot)
    if page is not None:
        update_docs(page, text)
    sys.exit(0 if all(held for *_, held in claims_of(curves_of(document["points"]))) else 1)


if __name__ == "__main__":
    run(main)
