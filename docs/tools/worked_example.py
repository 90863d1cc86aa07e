"""Prints the worked example of docs/formats.md: two small weights, byte by byte.

python docs/tools/worked_example.py [--write]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from generated_parts import replace_part
from lowbit_baselines import UniformWeight
from lowbit_dbllm import DualBinaryWeight, InterleavedPacker

from lowbit import QuantizedWeight
from lowbit.packing import GenericPacker

PAGE = Path(__file__).resolve().parents[1] / "formats.md"
BEGIN = "<!-- worked example -->"


def uniform() -> UniformWeight:
    """Return a weight of 3-bit codes, 2 x 5 in groups of 4."""
    return UniformWeight(
        codes=torch.tensor([[5, 1, 7, 0, 3], [2, 2, 6, 4, 1]], dtype=torch.uint8),
        scales=torch.tensor([[0.5, 0.25], [1.0, 2.0]]).half(),
        zero_points=torch.tensor([[3, 1], [4, 0]], dtype=torch.uint8),
        bits=3,
        group_size=4,
    )


def dual_binary() -> DualBinaryWeight:
    """Return a dual-binary weight, 2 x 5 in one group."""
    return DualBinaryWeight(
        plane1=torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 1]], dtype=torch.bool),
        plane2=torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]], dtype=torch.bool),
        alpha1=torch.tensor([[1.0], [0.5]]).half(),
        alpha2=torch.tensor([[-0.5], [-0.25]]).half(),
        group_size=-1,
    )


def example() -> str:
    """Return the text between the markers of the page."""
    codes, planes = uniform(), dual_binary()
    tiles = InterleavedPacker().pack(planes).tensors["tiles"]  # [1, 1, 48]
    words = tiles.flatten().tolist()
    first = ", ".join(f"{word} `{words[word] & 0xFFFFFFFF:08X}`" for word in (0, 1, 16, 17, 32, 40))
    return f"""
A `uniform` weight of 3 bits, 2 rows by 5 columns, groups of 4 columns (`sizes`: out 2, in 5, groups 2):

| tensor | values | bytes in the file |
| --- | --- | --- |
{_rows(codes)}
The first row of codes, 5 1 7 0 3, is the bits 101 100 111 000 110 (least significant first) and one 0 that fills the
second byte; in groups of eight, 10110011 and 10001100, which read from the right are CD and 31. So W is

{_matrix(codes)}
A `dual-binary` weight, 2 rows by 5 columns, one group a row (`group_size` -1), in the plain layout:

| tensor | values | bytes in the file |
| --- | --- | --- |
{_rows(planes)}
{_matrix(planes)}
The same in the layout `interleaved`: `tiles`, int32 {list(tiles.shape)}. Its words, in hexadecimal: {first}; every
other word is 0. Words 0 and 1 are plane 1 of the two rows, words 16 and 17 plane 2, word 32 both rows' alpha1 in
float16, word 40 both rows' alpha2.

"""


def _rows(weight: QuantizedWeight) -> str:
    packed = GenericPacker().pack(weight).tensors
    lines = []
    for name, tensor in weight.tensors().items():
        values = "; ".join(" ".join(f"{number:g}" for number in row) for row in tensor.float().tolist())
        stored = packed[name].contiguous().flatten().view(torch.uint8).tolist()
        lines.append(f"| `{name}` | {values} | `{' '.join(f'{byte:02X}' for byte in stored)}` |\n")
    return "".join(lines)


def _matrix(weight: QuantizedWeight) -> str:
    rows = "\n".join("  ".join(f"{number:>6g}" for number in row) for row in weight.dequantize().tolist())
    return f"```text\n{rows}\n```\n"


def main() -> None:
    """Print the example, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into docs/formats.md")
    if parser.parse_args().write:
        PAGE.write_text(replace_part(PAGE.read_text(encoding="utf-8"), BEGIN, example()), encoding="utf-8")
    else:
        print(example())


if __name__ == "__main__":
    main()
