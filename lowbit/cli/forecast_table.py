"""The table of `--dry_run`: what each quantization will need, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from lowbit.pipeline.forecast import Forecast, forecast
from lowbit.recipe import Recipe

COLUMNS = (
    "model",
    "method",
    "coverage",
    "bits linear",
    "peak memory",
    "working disk",
    "checkpoint",
    "time",
    "most of it",
    "training TFLOP",
)


def print_forecasts(recipes: Sequence[Recipe], device: str) -> None:
    """Print what each quantization will need, without reading a weight.

    Args:
        recipes: What would be run; those that quantize nothing are left out.
        device: Where it would be run.
    """
    from rich.table import Table

    from lowbit.cli.console import add_row, output

    table = Table(*COLUMNS)
    found: list[Forecast] = []
    for recipe in recipes:
        if recipe.quantizer is None:
            continue
        with _threads(recipe):
            one = forecast(recipe, device)
        found.append(one)
        add_row(table, *_row(recipe, one))
        for name in [*one.coverage.skipped, *one.coverage.others]:
            click.echo(f"not quantized: {name}")
    if len(found) > 1:
        add_row(table, *_sum(found))
    output().print(table)
    if found:
        click.echo(
            f"Timed on this machine in {sum(one.dry_run_seconds for one in found):.0f} s, with random numbers in the "
            "models' shapes; evaluation and hashing of the models' files are not included."
        )


def _row(recipe: Recipe, one: Forecast) -> list[str]:
    part, seconds = max(one.seconds_by_part.items(), key=lambda item: item[1])
    return [
        Path(recipe.model.path or "embedded").name,
        recipe.method,
        f"{100 * one.coverage.share:.2f} %",
        f"{one.quantized_bits:.3f}",
        readable_bytes(one.peak_memory_bytes),
        readable_bytes(one.working_disk_bytes),
        readable_bytes(one.checkpoint_bytes),
        _range(one.least_seconds, one.seconds),
        f"{part} {100 * seconds / max(one.seconds, 1e-9):.0f} %",
        f"{one.training_operations / 1e12:.3g}",
    ]


def _sum(found: Sequence[Forecast]) -> list[str]:
    """Return the last row: the largest memory and working disk, as cells run one after the other, and sums."""
    return [
        f"all {len(found)}",
        "",
        "",
        "",
        readable_bytes(max(one.peak_memory_bytes for one in found)),
        readable_bytes(max(one.working_disk_bytes for one in found)),
        readable_bytes(sum(one.checkpoint_bytes for one in found)),
        _range(sum(one.least_seconds for one in found), sum(one.seconds for one in found)),
        "",
        f"{sum(one.training_operations for one in found) / 1e12:.3g}",
    ]


def readable_bytes(number: float) -> str:
    """Return bytes as kB, MB, GB or TB, with three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def readable_seconds(number: float) -> str:
    """Return seconds as seconds, minutes, hours or days, with two or three digits."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if number >= 2 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} s"


def _range(least: float, most: float) -> str:
    """Return a time, or two where a training may stop early."""
    if least > 0.95 * most:
        return readable_seconds(most)
    return f"{readable_seconds(least)} to {readable_seconds(most)}"


@contextmanager
def _threads(recipe: Recipe) -> Iterator[None]:
    """Use as many threads as the run will."""
    import torch

    before = torch.get_num_threads()
    if recipe.resources.num_cpus is not None:
        torch.set_num_threads(recipe.resources.num_cpus)
    try:
        yield
    finally:
        torch.set_num_threads(before)
