"""`lowbit repack`: a checkpoint in the layout of another packer."""

from __future__ import annotations

import click

from lowbit.cli.options import plugin_options


@click.command("repack")
@click.argument("checkpoint", type=click.Path(file_okay=False))
@click.option("--packer", required=True, help="Name of the packer; `plain` is the generic one.")
@click.option("--output_path", "-o", required=True, help="Where the new checkpoint appears; it must not exist.")
@plugin_options
def command(checkpoint: str, packer: str, output_path: str, plugins: tuple[str, ...]) -> None:
    """Write a CHECKPOINT again in the layout of another packer: the same weights, bit by bit.

    Weights of formats that the packer does not serve get the plain layout.
    """
    from pathlib import Path

    from lowbit.cli.describe import print_bits
    from lowbit.cli.startup import start
    from lowbit.pipeline.repack import repack

    start(plugins)
    print_bits(repack(Path(checkpoint), Path(output_path), packer))
