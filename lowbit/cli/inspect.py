"""`lowbit inspect`: what a checkpoint is, from its files alone."""

from __future__ import annotations

import click

from lowbit.cli.options import plugin_options
from lowbit.untrusted import printable


@click.command("inspect")
@click.argument("checkpoint", type=click.Path(file_okay=False))
@click.option("--layers", is_flag=True, help="List every quantized layer.")
@plugin_options
def command(checkpoint: str, layers: bool, plugins: tuple[str, ...]) -> None:
    """Show formats, bits, coverage and recipe of a CHECKPOINT; bits are counted anew from its files."""
    from collections import Counter
    from pathlib import Path

    from rich.table import Table

    from lowbit.cli.console import add_row, output
    from lowbit.cli.describe import print_bits
    from lowbit.cli.startup import start
    from lowbit.pipeline.inspection import inspect_checkpoint

    start(plugins)
    found = inspect_checkpoint(Path(checkpoint))
    made = f"{found.method}, made by lowbit {found.lowbit_version}, parent sha256 {found.parent_sha256}"
    click.echo(printable(f"{checkpoint}: {made}"))
    coverage = found.coverage
    click.echo(
        f"coverage: {100 * coverage['share']:.2f} % of the decoder's weights, {coverage['quantized_targets']} matrices"
    )
    for name in [*coverage["skipped"], *coverage["other_matrices"]]:
        click.echo(printable(f"not quantized: {name}"))
    for (format_name, version, packer), count in Counter(found.formats).items():
        click.echo(printable(f"format {format_name} version {version}, packer {packer}: {count} matrices"))
    if found.calibration:
        told = ", ".join(f"{key} {value}" for key, value in found.calibration.items())
        click.echo(printable(f"calibration: {told}"))
    print_bits(found.bits)
    click.echo(printable(found.recipe), nl=False)
    if layers:
        table = Table("layer", "relative error", "bits nominal", "diagnostics")
        for layer in found.layers:
            numbers = ", ".join(f"{key} {value:.3f}" for key, value in layer["diagnostics"].items())
            add_row(table, layer["name"], f"{layer['relative_error']:.5f}", f"{layer['nominal_bits']:.2f}", numbers)
        output().print(table)
