"""`lowbit doctor`: versions, devices, and which kernels serve which layouts."""

from __future__ import annotations

import click

from lowbit.cli.options import plugin_options


@click.command("doctor")
@plugin_options
def command(plugins: tuple[str, ...]) -> None:
    """Show versions, devices, and which kernels serve which layouts on which device, and why others do not."""
    from rich.table import Table

    from lowbit.cli.console import add_row, output
    from lowbit.cli.startup import start
    from lowbit.pipeline.checkup import devices, kernel_report, versions

    found = start(plugins)
    console = output()
    table = Table("package", "version")
    for package, version in versions().items():
        add_row(table, package, version)
    console.print(table)
    for device, description in devices().items():
        click.echo(f"device {device}: {description}")
    table = Table("format", "packer", "device", "kernel", "serves", "why not")
    for line in kernel_report(found):
        chosen = "yes, chosen" if line.chosen else "yes" if line.served else "no"
        add_row(table, line.format, line.packer, line.device, line.kernel, chosen, line.reason)
    console.print(table)
    for broken in found.broken:
        click.echo(f"plugin not used: {broken.source}: {broken.reason}")
