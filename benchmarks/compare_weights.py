"""Compares a checkpoint's dequantized weights with those that another program made of the same model.

    python benchmarks/compare_weights.py CHECKPOINT OTHER.safetensors

OTHER.safetensors holds dequantized weights under the model's own names, such as the authors' code writes them when it
quantizes the same model in float32 with the same calibration tokens (`--calibration TOKENS.npz` here). A weight counts
as equal within 1e-4 of its matrix's largest magnitude. Rounding that flips one weight changes those after it, so the
first block shows whether both compute the same, and the later ones how far rounding errors carry.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

import lowbit

TOLERANCE = 1e-4


def equal_share(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the share of entries that are equal within the tolerance."""
    limit = TOLERANCE * theirs.abs().max()
    return ((ours.float() - theirs.float()).abs() <= limit).float().mean().item()


def shares_by_block(checkpoint: Path, other: Path) -> dict[int, dict[str, float]]:
    """Return the equal share of every matrix of `other`, by block and name within the block."""
    model = lowbit.load(checkpoint, backend="dense", dtype="float32")
    shares: dict[int, dict[str, float]] = defaultdict(dict)
    for name, theirs in load_file(other).items():
        parts = name.split(".")
        place = next(index for index, part in enumerate(parts) if part.isdigit())
        shares[int(parts[place])][".".join(parts[place + 1 : -1])] = equal_share(model.get_parameter(name), theirs)
    return dict(sorted(shares.items()))


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("other", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(checkpoint: Path, other: Path) -> None:
    """Print the equal shares of each block."""
    table = Table("block", "lowest matrix", "lowest share", "mean share")
    for block, shares in shares_by_block(checkpoint, other).items():
        lowest = min(shares, key=lambda name: shares[name])
        mean = sum(shares.values()) / len(shares)
        table.add_row(str(block), lowest, f"{shares[lowest]:.5f}", f"{mean:.5f}")
    Console().print(table)


if __name__ == "__main__":
    main()
