"""Prints bits and layers for people."""

from __future__ import annotations

from rich.table import Table

from lowbit.cli.console import add_row, output
from lowbit.modeling.bits_report import BitsReport


def print_bits(bits: BitsReport) -> None:
    """Print the three counts of bits and every item that they consist of."""
    table = Table("bits per weight", "", caption=f"{bits.file_bytes} bytes in all", caption_justify="left")
    add_row(table, "nominal", f"{bits.nominal_bits:.3f}")
    add_row(table, "quantized linears, from bytes", f"{bits.quantized_bits:.3f}")
    add_row(table, "whole file, from bytes", f"{bits.whole_file_bits:.3f}")
    table.add_section()
    for item, size in bits.items.items():
        add_row(table, item, f"{size} bytes")
    output().print(table)
