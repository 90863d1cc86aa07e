"""Measures products with packed layers beside torch's dense ones, other projects' and the memory bandwidth.

    python benchmarks/kernels.py -o kernels.json
    python benchmarks/kernels.py --shapes 7b --rows 1,16 --threads 2 --markdown --plot kernels.svg
    python benchmarks/kernels.py --device cuda --shapes 7b,70b --dtypes float16,bfloat16
    python benchmarks/kernels.py --show -o kernels.json --markdown

A cell is one layer (out x in) of one method with one number of activation rows. Every product is checked against
float64 before it is timed; a wrong one is not timed, and the command fails. All products of a cell run in turn, a burst
of calls each, round after round, together with a large copy and a large sum, so that whatever else the machine does
meets all of them. Each weight exists as often as it takes to exceed the last cache twice, and calls rotate through the
copies. On CUDA a burst is a replay of a graph of one call for each copy.

The file is written after each cell, and the same command continues an interrupted one. llama.cpp is found through an
installed llama-cpp-python, or by --ggml, the folder with its libggml-cpu.so.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from kernels_contenders import (
    DTYPES,
    Absent,
    Agreement,
    Call,
    Contender,
    Layer,
    agreement,
    kernel_contenders,
    quantized_layer,
    torch_contenders,
)
from kernels_peers import peer_contenders, peer_versions
from kernels_report import Cell, Line, describe, draw, to_markdown, to_table
from kernels_timing import bandwidth_calls, bandwidth_of, cache_bytes, clock_for, host_facts, interleaved
from layer_cost import parse_shape
from rich.console import Console

from lowbit.durable import make_directory, write_json
from lowbit.errors import LowbitError
from lowbit.pipeline.identity import package_versions, plugin_versions
from lowbit.registry import registry

MODELS = {
    "7b": ("4096x4096", "11008x4096", "4096x11008"),
    "13b": ("5120x5120", "13824x5120", "5120x13824"),
    "70b": ("8192x8192", "28672x8192", "8192x28672"),
}
"""Shapes of LLaMA's linear layers."""
WRONG = "wrong"
PLAN = ("rounds", "calls", "budget")


def shapes_of(text: str) -> list[str]:
    """Return shapes from names of models and `OUTxIN`, joined by commas."""
    found = [shape for part in text.split(",") for shape in MODELS.get(part, (part,))]
    for shape in found:
        parse_shape(shape)
    return list(dict.fromkeys(found))


def contenders_of(
    layer: Layer, dtypes: list[str], peers: bool, ggml: Path | None
) -> tuple[list[Contender], dict[str, str]]:
    """Return everything that multiplies by a layer, and what does not with the reason."""
    groups: list[Iterable[Contender | Absent]] = [torch_contenders(layer, dtypes), kernel_contenders(layer, dtypes)]
    if peers:
        groups.append(peer_contenders(layer, dtypes, ggml))
    found = list(itertools.chain.from_iterable(groups))
    return (
        [one for one in found if isinstance(one, Contender)],
        {one.name: one.reason for one in found if isinstance(one, Absent)},
    )


def measure_cell(
    layer: Layer,
    contenders: Sequence[Contender],
    absent: dict[str, str],
    rows: int,
    plan: dict[str, Any],
    seed: int,
    bandwidth_bytes: int | None = None,
) -> Cell:
    """Check every contender, then time those that are right in turn.

    Args:
        layer: What is multiplied by.
        contenders: What multiplies.
        absent: What does not, for the record.
        rows: Of the activations.
        plan: `rounds`, `calls` and `budget` of `interleaved`.
        seed: Decides the activations.
        bandwidth_bytes: Bytes that are copied and read; `None` for the usual.
    """
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(rows, parse_shape(layer.shape)[1], generator=generator)
    timed: dict[str, Sequence[Call]] = {}
    checked: dict[str, tuple[Contender, Agreement, int]] = {}
    for number, one in enumerate(contenders):
        x = plain.to(layer.device, DTYPES[one.dtype])
        calls = one.calls(x)
        found = agreement(calls[-1](), one.matrix(), x)
        checked[str(number)] = one, found, len(calls)
        if found.agrees or not one.exact:
            timed[str(number)] = calls
    bandwidth = bandwidth_calls(layer.device, bandwidth_bytes)

    def problem(key: str) -> str:
        return "" if key in timed else WRONG

    times = interleaved({**timed, **bandwidth}, clock_for(layer.device), **plan)
    lines = [
        Line(one.name, one.kind, one.weights, one.dtype, one.bytes, copies, found.error, times.get(key), problem(key))
        for key, (one, found, copies) in checked.items()
    ]
    measured = bandwidth_of(times, layer.device, bandwidth_bytes)
    return Cell(layer.shape, rows, layer.method, measured, tuple(lines), absent, os.getloadavg()[0])


def read_cells(file: Path, conditions: dict[str, Any] | None) -> tuple[list[Cell], dict[str, Any]]:
    """Return the cells of a file and the file's content; none where there is no file.

    Raises:
        LowbitError: The cells were measured under other conditions.
    """
    if not file.is_file():
        return [], {}
    content = json.loads(file.read_text(encoding="utf-8"))
    known = content["conditions"]
    different = [key for key, value in (conditions or {}).items() if known.get(key) != json.loads(json.dumps(value))]
    if different:
        raise LowbitError(f"{file} was measured under another {', '.join(different)}; choose another -o, or remove it")
    return [Cell.read(cell) for cell in content["cells"]], content


def show(cells: Sequence[Cell], content: dict[str, Any], markdown: bool, plot: Path | None) -> None:
    """Print the table, and draw the picture."""
    click.echo(describe(content["conditions"], content["date"]) + "\n")
    if markdown:
        click.echo(to_markdown(cells))
    else:
        Console(width=200).print(to_table(cells))
    if plot is not None:
        draw(cells, plot)


def choices(text: str, known: Iterable[str], what: str) -> list[str]:
    """Return names joined by commas.

    Raises:
        LowbitError: One is unknown.
    """
    names, all_known = text.split(","), list(known)
    for name in names:
        if name not in all_known:
            raise LowbitError(f"{what} {name!r} is unknown; it is one of {', '.join(all_known)}")
    return names


@click.command(help=__doc__)
@click.option("--shapes", default="7b", show_default=True, help="7b, 13b, 70b or OUTxIN, joined by commas.")
@click.option("--rows", default="1,4,16,64", show_default=True, help="Rows of the activations, joined by commas.")
@click.option("--methods", default="dbllm-ptq", show_default=True, help="Names joined by commas.")
@click.option("--packer", help="Layout of the weights; by default the method's own.")
@click.option("--dtypes", default="float32,bfloat16,float16", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=lambda: os.cpu_count() or 1, help="Default: all cores.")
@click.option("--rounds", type=click.IntRange(min=3), default=15, show_default=True)
@click.option("--calls", type=click.IntRange(min=1), default=10, show_default=True, help="Most calls of a burst.")
@click.option("--budget", default=6.0, show_default=True, help="Seconds for one product of a cell.")
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--ggml", type=click.Path(path_type=Path, file_okay=False), help="Folder with libggml-cpu.so.")
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("kernels.json"))
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the roofline into this file.")
@click.option("--show", "only_show", is_flag=True, help="Measure nothing; print what the output holds.")
def main(
    device: str, threads: int, output: Path, markdown: bool, plot: Path | None, only_show: bool, **rest: Any
) -> None:
    """Measure every cell that the output does not hold yet, and print the table."""
    if only_show:
        cells, content = read_cells(output, None)
        if not cells:
            raise LowbitError(f"{output} holds no cells")
        show(cells, content, markdown, plot)
        return
    rest["methods"] = choices(rest["methods"], [method.name for method in registry().methods()], "method")
    rest["dtypes"] = choices(rest["dtypes"], DTYPES, "dtype")
    torch.set_num_threads(threads)
    place = torch.device(device)
    conditions = {
        "versions": {**package_versions(("lowbit", "torch")), **peer_versions(rest["ggml"], threads)},
        "plugins": plugin_versions(registry().plugins),
        "host": host_facts(place),
        **{"device": device, "threads": threads},
        **{key: rest[key] for key in ("dtypes", "packer", "peers", "seed", *PLAN)},
    }
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    cells, _ = read_cells(output, conditions)
    content = {"conditions": conditions, "date": date}
    make_directory(output.parent)
    for cell in missing_cells(cells, place, threads, **rest):
        cells.append(cell)
        write_json(output, {**content, "cells": [known.to_json() for known in cells]})
        Console(stderr=True, width=200).print(to_table([cell]))
    show(cells, content, markdown, plot)
    wrong = [f"{line.name} ({line.dtype}) at {one.shape}" for one in cells for line in one.lines if line.problem]
    if wrong:
        raise LowbitError(f"wrong results: {'; '.join(wrong)}")


def missing_cells(
    known: Sequence[Cell],
    device: torch.device,
    threads: int,
    shapes: str,
    rows: str,
    methods: Sequence[str],
    packer: str | None,
    dtypes: Sequence[str],
    peers: bool,
    ggml: Path | None,
    seed: int,
    **plan: Any,
) -> Iterator[Cell]:
    """Yield every cell that is not known, each as soon as it is measured."""
    have = {(cell.shape, cell.method, cell.rows) for cell in known}
    for shape, method in itertools.product(shapes_of(shapes), methods):
        missing = [count for count in map(int, rows.split(",")) if (shape, method, count) not in have]
        if missing:
            layer = quantized_layer(shape, method, packer, device, cache_bytes(device), threads, seed)
            contenders, absent = contenders_of(layer, list(dtypes), peers, ggml)
            for count in missing:
                yield measure_cell(layer, contenders, absent, count, plan, seed)


if __name__ == "__main__":
    try:
        with torch.inference_mode():
            main(standalone_mode=False)
    except (LowbitError, click.ClickException) as error:
        sys.exit(f"error: {error}")
    except click.Abort:
        sys.exit("interrupted; the same command continues")
