"""Measures what one layer costs every method against its shape: seconds, CPU seconds and peak memory.

    python benchmarks/layer_cost.py -o layer_cost.json
    python benchmarks/layer_cost.py --methods gptq,billm --shapes 256x256,512x512 --threads 1 --markdown

A cell is one method on one shape (out x in), in processes of its own, lightest shapes first. The file is written after
each cell, and the same command continues an interrupted one. Weights are Gaussian with a few large columns; the
Hessian is that of correlated tokens, a few of whose features are large.

Memory is the most that quantize() held at once above what the process held before it, over the bytes of the layer in
float32. Weight and Hessian are there before and do not count; the result does. It is measured twice. "Peak" comes from
a process of its own, in which the C library takes every piece from 64 KiB on from the system and gives it back at once:
what the method needs. "Resident" is the median of the timed runs, in which the library keeps pieces for later, as it
does in a real run. The kernel's own mark of the highest resident memory is reset before each run, so that no peak is
too short to be seen; file pages that were read meanwhile are subtracted; freed memory is given back to the system
before, so that it cannot hide a need. A run on a small layer goes first, for code and threads to be there. Both numbers
hold up to a MiB of the libraries' own, which is much beside the smallest layers.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from command_line import run
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lowbit.contracts import LayerStatistics, StatisticsNeed, WeightQuantizer
from lowbit.durable import make_directory, write_json
from lowbit.errors import LowbitError
from lowbit.pipeline.identity import package_versions, plugin_versions
from lowbit.recipe import resolve_recipe
from lowbit.recipe.resolve import build_quantizer
from lowbit.registry import registry

SHAPES = ("256x256", "512x512", "1024x1024", "2048x2048", "4096x4096", "4096x11008")
TARGET_SHAPE = "4096x4096"
TARGET_THREADS = 2
TARGET_SECONDS = {"rtn": 1.0, "fdb": 1.0, "gptq": 20.0, "pbllm": 30.0, "billm": 60.0}
"""By quantizer, for a layer of the target shape on two cores."""
TARGET_MEMORY = 6.0
"""Peak over the layer's bytes in float32, for every method and shape."""
TOKENS = 512
FACTORS = 64
ALL_FROM_THE_SYSTEM = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc take pieces from 64 KiB on from the system, and give them back as soon as they are freed."""
TITLES = ("method", "out x in", "seconds", "CPU s", "target s", "time", "resident / fp32", "peak / fp32", "memory")
LEFT = ("method", "out x in", "time", "memory")


@dataclass(frozen=True)
class Run:
    """One quantization of a layer.

    Args:
        seconds: On the clock.
        cpu_seconds: Of all threads.
        resident_factor: Most memory above that before, over the layer's bytes in float32.
        relative_error: Squared error of the dequantized weights over their squares: equal for every run of a cell.
        timed: Whether this is not the run that measures the peak.
    """

    seconds: float
    cpu_seconds: float
    resident_factor: float
    relative_error: float
    timed: bool


@dataclass(frozen=True)
class Cell:
    """The runs of one method on one shape.

    Args:
        method: Name of the method.
        quantizer: Name of its quantizer.
        shape: `OUTxIN`.
        runs: What was measured.
        problem: Why there are fewer runs than asked for.
        load: The machine's load when the cell ended, mean of the last minute.
    """

    method: str
    quantizer: str
    shape: str
    runs: tuple[Run, ...] = ()
    problem: str = ""
    load: float = field(default=0.0, compare=False)

    def median(self, what: str) -> float:
        """Return the median of one of the timed runs' numbers."""
        return float(statistics.median(getattr(run, what) for run in self.timed))

    @property
    def timed(self) -> list[Run]:
        """The timed runs."""
        return [run for run in self.runs if run.timed]

    @property
    def peak_factor(self) -> float | None:
        """What the method needs, over the layer's bytes in float32; `None` where it was not measured."""
        return next((run.resident_factor for run in self.runs if not run.timed), None)


def make_layer(shape: str, seed: int) -> tuple[Tensor, LayerStatistics]:
    """Return a weight float32 [out, in] and statistics with a positive definite Hessian float32 [in, in]."""
    out, columns = parse_shape(shape)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, columns, generator=generator).mul_(0.02)
    large = torch.randperm(columns, generator=generator)[: max(1, columns // 64)]
    weight[:, large] *= 8
    loadings = torch.randn(FACTORS, columns, generator=generator)
    tokens = torch.randn(TOKENS, FACTORS, generator=generator) @ loadings / FACTORS**0.5  # [tokens, in]
    tokens[:, torch.randperm(columns, generator=generator)[: len(large)]] *= 10
    hessian = (tokens.T @ tokens).mul_(2 / TOKENS)
    # A part of each feature that no other shares, which makes the Hessian positive definite.
    hessian.diagonal().mul_(1.1)
    return weight, LayerStatistics(TOKENS, hessian.diagonal() / 2, hessian)


def parse_shape(shape: str) -> tuple[int, int]:
    """Return rows and columns of `OUTxIN`.

    Raises:
        LowbitError: It is something else.
    """
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", shape)
    if match is None:
        raise LowbitError(f"shape {shape!r} is not OUTxIN, as in 4096x11008")
    return int(match[1]), int(match[2])


def runs_of(method: str, shape: str, repeats: int, seed: int, timed: bool) -> Iterator[Run]:
    """Quantize a small layer, then the layer `repeats` times."""
    quantizer = quantizer_of(method)
    small, about_small = make_layer("64x256", seed)
    quantizer.quantize(small, needed(quantizer, about_small), torch.Generator().manual_seed(seed))
    weight, collected = make_layer(shape, seed)
    known = needed(quantizer, collected)
    del collected
    for _ in range(repeats):
        yield measure(quantizer, weight, known, seed, timed)


def quantizer_of(method: str) -> WeightQuantizer:
    """Return the quantizer of a method with the method's options.

    Raises:
        LowbitError: The method is unknown, or has none.
    """
    settings = resolve_recipe(registry(), method).quantizer
    if settings is None:
        raise LowbitError(f"method {method!r} has no quantizer that could be measured")
    return build_quantizer(registry(), {"name": settings.name, **settings.options})


def needed(quantizer: WeightQuantizer, known: LayerStatistics) -> LayerStatistics | None:
    """Return what the quantizer declares to need."""
    if quantizer.needs is StatisticsNeed.NONE:
        return None
    if quantizer.needs is StatisticsNeed.HESSIAN:
        return known
    return LayerStatistics(known.tokens, known.second_moment)


def measure(quantizer: WeightQuantizer, weight: Tensor, known: LayerStatistics | None, seed: int, timed: bool) -> Run:
    """Quantize once."""
    generator = torch.Generator().manual_seed(seed)
    ctypes.CDLL(None).malloc_trim(0)
    before = memory()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    started, cpu_started = time.perf_counter(), time.process_time()
    quantized = quantizer.quantize(weight, known, generator)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    after = memory()
    files = max(0, after["RssFile"] - before["RssFile"])
    peak = after["VmHWM"] - before["VmRSS"] - files
    if quantized.shape != tuple(weight.shape):
        raise LowbitError(f"{quantizer.name} returned shape {quantized.shape} for {tuple(weight.shape)}")
    error = (quantized.dequantize() - weight).square_().sum() / weight.square().sum()
    return Run(seconds, cpu_seconds, max(0, peak) / weight.nbytes, float(error), timed)


def memory() -> dict[str, int]:
    """Return the process's resident memory, its highest and the part of files, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "RssFile")}


def run_cell(method: str, shape: str, repeats: int, threads: int, seed: int, budget: float) -> Cell:
    """Measure one cell in fresh processes: one for the time, one for the peak of memory."""
    order = {"method": method, "shape": shape, "threads": threads, "seed": seed}
    timed, problem = runs_elsewhere({**order, "repeats": repeats, "timed": True}, budget)
    held: tuple[Run, ...] = ()
    if not problem:
        held, problem = runs_elsewhere({**order, "repeats": 1, "timed": False}, budget)
    name = str(registry().method(method).quantizer)
    return Cell(method, name, shape, timed + held, problem, os.getloadavg()[0])


def runs_elsewhere(order: dict[str, Any], budget: float) -> tuple[tuple[Run, ...], str]:
    """Return what a fresh process measures until the budget is spent, and why there is no more."""
    threads = str(order["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if not order["timed"]:
        environment |= ALL_FROM_THE_SYSTEM
    command = [sys.executable, str(Path(__file__).resolve()), "--cell", json.dumps(order)]
    problem = ""
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=budget)
        output = done.stdout
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            problem = f"failed ({done.returncode}): {lines[-1] if lines else 'no message'}"
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or b""
        problem = f"over the budget of {budget:g} s"
    whole_lines = output.decode().split("\n")[:-1]
    return tuple(Run(**json.loads(line)) for line in whole_lines), problem


def time_verdict(cell: Cell, threads: int) -> str:
    """Say whether a cell meets its target of time, which is for a number of threads: fewer can meet it, not miss it."""
    target = TARGET_SECONDS.get(cell.quantizer)
    if target is None or cell.shape != TARGET_SHAPE:
        return ""
    met = bool(cell.timed) and cell.median("seconds") <= target
    judged = threads == TARGET_THREADS or (threads < TARGET_THREADS) == met
    return ("met" if met else "missed") if judged else "not judged"


def memory_verdict(cell: Cell) -> str:
    """Say whether a cell meets the target of memory."""
    if cell.peak_factor is None:
        return ""
    return "met" if cell.peak_factor <= TARGET_MEMORY else "missed"


def texts(cell: Cell, threads: int) -> list[str]:
    """Return a cell as a row of the table."""
    target = TARGET_SECONDS.get(cell.quantizer) if cell.shape == TARGET_SHAPE else None
    seconds = cpu_seconds = resident = "-"
    if cell.timed:
        seconds, cpu_seconds = (f"{cell.median(what):.3g}" for what in ("seconds", "cpu_seconds"))
        resident = f"{cell.median('resident_factor'):.2f}"
    if cell.problem:
        seconds += f" ({cell.problem}; {len(cell.timed)} runs)"
    return [
        cell.method,
        cell.shape,
        seconds,
        cpu_seconds,
        "" if target is None else f"{target:g}",
        time_verdict(cell, threads),
        resident,
        "-" if cell.peak_factor is None else f"{cell.peak_factor:.2f}",
        memory_verdict(cell),
    ]


def describe(conditions: dict[str, Any], date: str) -> str:
    """Say in a sentence how was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    return (
        f"Median of {conditions['repeats']} runs, {conditions['threads']} threads, {conditions['cpu_count']} CPU cores "
        f"({conditions['machine']}), seed {conditions['seed']}, {date}; {versions}. Targets: seconds for "
        f"{TARGET_SHAPE} on {TARGET_THREADS} cores, and a peak of {TARGET_MEMORY:g} times the layer's float32 bytes."
    )


def to_markdown(cells: Sequence[Cell], threads: int) -> str:
    """Return the table as Markdown."""
    rows = [list(TITLES), ["---" if title in LEFT else "---:" for title in TITLES]]
    rows += [texts(cell, threads) for cell in cells]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)


def to_table(cells: Sequence[Cell], threads: int) -> Table:
    """Return the table for a terminal."""
    table = Table()
    for title in TITLES:
        table.add_column(title, justify="left" if title in LEFT else "right")
    for cell in cells:
        table.add_row(*texts(cell, threads))
    return table


def read_cells(file: Path, conditions: dict[str, Any]) -> list[Cell]:
    """Return the cells of an interrupted measurement, without those that have a problem.

    Raises:
        LowbitError: They were measured under other conditions.
    """
    if not file.is_file():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    different = [key for key, value in conditions.items() if content.get("conditions", {}).get(key) != value]
    if different:
        raise LowbitError(f"{file} was measured under another {', '.join(different)}; choose another -o, or remove it")
    found = [Cell(**{**cell, "runs": tuple(Run(**run) for run in cell["runs"])}) for cell in content["cells"]]
    return [cell for cell in found if not cell.problem]


def default_methods() -> str:
    """Return every method that has a quantizer, joined by commas."""
    return ",".join(method.name for method in registry().methods() if method.quantizer is not None)


@click.command(help=__doc__)
@click.option("--methods", help="Names joined by commas; by default every method that has a quantizer.")
@click.option("--shapes", default=",".join(SHAPES), show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=TARGET_THREADS, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--budget", default=900.0, show_default=True, help="Seconds for the timed runs of a cell, and again for its peak."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("layer_cost.json"))
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--cell", hidden=True, help="Measure this part of a cell in this process.")
def main(
    methods: str | None,
    shapes: str,
    repeats: int,
    threads: int,
    seed: int,
    budget: float,
    output: Path,
    markdown: bool,
    cell: str | None,
) -> None:
    """Measure every cell that the output does not hold yet, and print the table."""
    if cell is not None:
        print_runs(**json.loads(cell))
        return
    conditions = {
        "versions": package_versions(("lowbit", "torch")),
        "plugins": plugin_versions(registry().plugins),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        **{"repeats": repeats, "threads": threads, "seed": seed},
    }
    names = (methods or default_methods()).split(",")
    for name in names:
        quantizer_of(name)
    order = sorted(shapes.split(","), key=lambda shape: (parse_shape(shape)[0] * parse_shape(shape)[1], shape))
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    console = Console(stderr=True)
    cells = read_cells(output, conditions)
    make_directory(output.parent)
    for shape in order:
        for name in names:
            if any((known.method, known.shape) == (name, shape) for known in cells):
                continue
            cells.append(run_cell(name, shape, repeats, threads, seed, budget))
            write_json(output, {"conditions": conditions, "date": date, "cells": [asdict(cell) for cell in cells]})
            console.print("  ".join(filter(None, texts(cells[-1], threads))), highlight=False, soft_wrap=True)
    chosen = [known for known in cells if known.method in names and known.shape in order]
    chosen.sort(key=lambda known: (order.index(known.shape), names.index(known.method)))
    click.echo(describe(conditions, date) + "\n")
    if markdown:
        click.echo(to_markdown(chosen, threads))
    else:
        Console().print(to_table(chosen, threads))


def print_runs(method: str, shape: str, threads: int, seed: int, repeats: int, timed: bool) -> None:
    """Measure a part of a cell, and print each run as a line of JSON as soon as it is done."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        for run in runs_of(method, shape, repeats, seed, timed):
            click.echo(json.dumps(asdict(run)))


if __name__ == "__main__":
    run(main)
