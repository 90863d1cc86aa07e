"""`lowbit matrix`: which quantizers, losses, packers and kernels go together, and why others do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import plugin_options

if TYPE_CHECKING:
    from lowbit.pipeline.composition import Combination, Selection
    from lowbit.pipeline.composition_sheets import Sheet
    from lowbit.registry import Registry


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Split names at commas."""
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


@click.command("matrix")
@click.option("--quantizer", callback=_names, metavar="NAME,...", help="Only these quantizers.")
@click.option("--loss", callback=_names, metavar="NAME,...", help="Only these losses; `none` is no training.")
@click.option("--packer", callback=_names, metavar="NAME,...", help="Only these packers; `plain` is the generic one.")
@click.option("--kernel", callback=_names, metavar="NAME,...", help="Only these kernels.")
@click.option("--method", callback=_names, metavar="NAME,...", help="Only quantizers as these methods use them.")
@click.option("--device", default="cpu", show_default=True, help="Where kernels would run; it need not be here.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the activations.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "markdown", "json", "csv"]),
    default="table",
    show_default=True,
    help="table and markdown sum up; json and csv have one entry a combination.",
)
@click.option("--refused", is_flag=True, help="Only what is refused, and why.")
@click.option("--verify", is_flag=True, help="Run every allowed combination here and now, on small matrices.")
@click.option("--record", is_flag=True, help="With --verify: write what passed beside each plugin.")
@plugin_options
def command(layout: str, refused: bool, verify: bool, record: bool, plugins: tuple[str, ...], **chosen: Any) -> int:
    """Show which quantizers, losses, packers and kernels go together, and why others do not.

    All of it is computed from what the parts declare. `tested` means that the combination ran: quantized, trained one
    step, packed, unpacked and multiplied, by `--verify` here and now or as recorded with the plugin.
    Exit code 1: a combination failed.
    """
    from dataclasses import replace

    from lowbit.cli.startup import start

    if record and not verify:
        raise click.UsageError("--record writes what --verify saw; give both")
    found = start(plugins)
    selection = _selection(chosen)
    if record and replace(selection, device="cpu", dtype=_dtype("float32")) != _selection({}):
        raise click.UsageError("--record writes the whole matrix of a device; leave out the filters")
    shown, failed = _computed(found, selection, verify, record)
    kept = [one for one in shown if not one.allowed] if refused else shown
    if layout in ("json", "csv"):
        _print_flat(kept, layout)
    else:
        _print_sheets(found, kept, layout, refused)
    if layout == "table":
        from lowbit.pipeline.composition_sheets import summary

        click.echo(summary(shown))
    for one in failed:
        where = f"{one.variant.label}, loss {one.loss}, packer {one.packer}, kernel {one.kernel}"
        click.echo(f"{where}: {one.tested}", err=True)
    return 1 if failed else 0


def _selection(chosen: dict[str, Any]) -> Selection:
    from lowbit.pipeline.composition import Selection

    return Selection(
        quantizers=chosen.get("quantizer", ()),
        losses=chosen.get("loss", ()),
        packers=chosen.get("packer", ()),
        kernels=chosen.get("kernel", ()),
        methods=chosen.get("method", ()),
        device=chosen.get("device", "cpu"),
        dtype=_dtype(chosen.get("dtype", "float32")),
    )


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _computed(
    found: Registry, selection: Selection, verify: bool, record: bool
) -> tuple[list[Combination], list[Combination]]:
    """Return all combinations, and those that failed."""
    from lowbit.pipeline.composition import combinations
    from lowbit.pipeline.composition_record import after_run, with_tests, write_records
    from lowbit.pipeline.composition_run import run_combinations
    from lowbit.pipeline.resources import require_device

    computed = combinations(found, selection)
    if not verify:
        return with_tests(found, computed), []
    require_device(selection.device)
    outcomes = list(run_combinations(found, computed))
    if record:
        for file in write_records(found, outcomes):
            click.echo(f"wrote {file}", err=True)
    tested = iter([after_run(outcome) for outcome in outcomes])
    shown = [next(tested) if one.allowed else one for one in computed]
    failed = [one for one, outcome in zip([s for s in shown if s.allowed], outcomes, strict=True) if not outcome.passed]
    return shown, failed


def _print_flat(found: Sequence[Combination], layout: str) -> None:
    import csv
    import json
    import sys

    from lowbit.pipeline.composition_sheets import COLUMNS, flat

    if layout == "json":
        click.echo(json.dumps([one.to_dict() for one in found], indent=1))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(flat(found))


def _print_sheets(registry: Registry, found: Sequence[Combination], layout: str, refused: bool) -> None:
    from lowbit.pipeline.composition import unmet_formats, unresolved_methods
    from lowbit.pipeline.composition_sheets import sheets

    for sheet in sheets(found, refused):
        if layout == "markdown":
            click.echo(_markdown(sheet))
        else:
            _print_table(sheet)
    shown = list({one.variant.label: one.variant for one in found}.values())
    for variant, name in unmet_formats(registry, shown):
        click.echo(f"{variant.label} makes {name}, too, of weights that no trial matrix had.")
    for name, reason in unresolved_methods(registry):
        click.echo(f"method {name} is left out: {reason}", err=True)


def _print_table(sheet: Sheet) -> None:
    from rich.table import Table

    from lowbit.cli.console import add_row, output

    table = Table(*sheet.header, title=sheet.title, title_justify="left")
    for row in sheet.rows:
        add_row(table, *row)
    output().print(table)


def _markdown(sheet: Sheet) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    rule = "| " + " | ".join("---" for _ in sheet.header) + " |"
    return "\n".join([f"### {sheet.title}", "", line(sheet.header), rule, *(line(row) for row in sheet.rows), ""])
