"""Measures the memory of a quantization in a process of its own, after a warm-up that loads every library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from quantization_memory import SHAPES, measure, write_parent

NARROW = {**SHAPES["small"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
TOKENS = (4, 64)


def main(root: Path) -> None:
    """Print what the larger of two runs took."""
    torch.set_num_threads(1)
    write_parent(root / "narrow" / "parent", NARROW, seed=0)
    measure(root / "narrow", NARROW, 0, TOKENS)
    write_parent(root / "wide" / "parent", SHAPES["small"], seed=0)
    print(json.dumps(measure(root / "wide", SHAPES["small"], 0, TOKENS)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
