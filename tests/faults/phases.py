"""The phases of work that faults are put into: each a command line, and how to see what it has finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.results.store import read_results

STEPS = 6
TRAINING = {
    "reconstruction": {"steps": 4, "batch_size": 4, "checkpoint_minutes": 1e-6},
    "distillation": {
        "steps": STEPS, "batch_size": 4, "held_out": 2, "evaluate_every": 2, "checkpoint_minutes": 1e-6,
    },
    "training_data": {"source": "calibration"},
    "quantizer": {"grid_candidates": 4, "iterations": 2},
}  # fmt: skip
MINUTE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
GRID = """
methods: [rtn]
recipe: {eval: {tasks: smallworld_choice, limit: 3, log_samples: true}}
"""


@dataclass(frozen=True)
class Inputs:
    """What every phase reads.

    Args:
        parent: A small model's folder.
        tokens: Calibration tokens.
        checkpoint: A finished checkpoint; absent until it was made.
        results: A results directory; absent until it was made.
    """

    parent: Path
    tokens: Path
    checkpoint: Path
    results: Path


@dataclass(frozen=True)
class Phase:
    """A piece of work.

    Args:
        name: For reports.
        command: Returns the command line that works in a folder.
        output: What it makes, in that folder.
    """

    name: str
    command: Callable[[Inputs, Path], list[str]]
    output: str

    def state(self, folder: Path) -> dict[str, Any]:
        """Return what the disk says is finished: leading blocks, training steps, results."""
        if self.name == "results":
            # A run that was killed early has not even made the directory.
            found = _results(folder).results if (folder / "out").exists() else ()
            return {"results": sorted(str(result.path) for result in found)}
        journal = folder / f"{self.output}.partial"
        blocks = len(list(journal.glob("block-*.json"))) and len(
            [file for file in journal.glob("block-*.safetensors") if ".state." not in file.name]
        )
        return {
            "blocks": blocks,
            "distillation": _step(journal / "training" / "training.json"),
            "reconstruction": place(blocks, _step(journal / "reconstruction" / "training.json", blocks)),
        }

    def made(self, folder: Path) -> dict[str, str]:
        """Return the hashes of everything whose bytes are promised."""
        if self.name == "results":
            made = hashes(folder / self.output / "checkpoints")
            # Beside the checkpoints lie their costs, which are times.
            return {name: sha256 for name, sha256 in made.items() if name.count("/") > 1}
        return hashes(folder / self.output)


def quantization(inputs: Inputs, folder: Path) -> list[str]:
    """Quantize with calibration."""
    command = ["quantize", "--method", "gptq", "--model", str(inputs.parent), "--calibration", str(inputs.tokens)]
    return [*command, "--set", "max_shard_size=20000", "-o", str(folder / "out")]


def training(inputs: Inputs, folder: Path) -> list[str]:
    """Reconstruct blocks, then distill."""
    command = ["quantize", "--method", "dbllm-ptq", "--model", str(inputs.parent), "--calibration", str(inputs.tokens)]
    for part, settings in TRAINING.items():
        for key, value in settings.items():
            command += ["--set", f"{part}.{key}={value}"]
    return [*command, "-o", str(folder / "out")]


def packing(inputs: Inputs, folder: Path) -> list[str]:
    """Write a checkpoint in another layout."""
    return ["repack", str(inputs.checkpoint), "--packer", "bit-planes", "-o", str(folder / "out")]


def results(inputs: Inputs, folder: Path) -> list[str]:
    """Run a grid of one cell beside its parent."""
    grid = folder.parent / f"{folder.name}-grid.yaml"
    grid.write_text(GRID)
    return ["bench", "--grid", str(grid), "-o", str(folder / "out")]


def generation(inputs: Inputs, folder: Path) -> list[str]:
    """Let a model write tokens."""
    command = ["generate", "--model", str(inputs.parent), "--n_samples", "6", "--batch_size", "2", "--seq_len", "8"]
    return [*command, "-o", str(folder / "out.npz")]


def report(inputs: Inputs, folder: Path) -> list[str]:
    """Write a results directory as one HTML file."""
    return ["report", str(inputs.results), "--no_plots", "-o", str(folder / "out.html")]


def leaderboard(inputs: Inputs, folder: Path) -> list[str]:
    """Write a results directory as a table."""
    return ["leaderboard", str(inputs.results), "--format", "csv", "-o", str(folder / "out.csv")]


PHASES = {
    "quantization": Phase("quantization", quantization, "out"),
    "training": Phase("training", training, "out"),
    "packing": Phase("packing", packing, "out"),
    "results": Phase("results", results, "out"),
    "generation": Phase("generation", generation, "out.npz"),
    "report": Phase("report", report, "out.html"),
    "leaderboard": Phase("leaderboard", leaderboard, "out.csv"),
}


def place(block: int, step: int) -> int:
    """Return a number that grows with the block and, within one, with the step."""
    return 1000 * block + step


def hashes(made: Path) -> dict[str, str]:
    """Return the hash of a file, or of every file of a folder."""
    files = [made] if made.is_file() else [file for file in made.rglob("*") if file.is_file()]
    return {str(file.relative_to(made.parent)): hashlib.sha256(_timeless(file)).hexdigest() for file in files}


def _timeless(file: Path) -> bytes:
    """Return a file's bytes; of a report, without the minute that it was made in."""
    content = file.read_bytes()
    return MINUTE.sub(b"", content) if file.suffix == ".html" else content


def _results(folder: Path) -> Any:
    """Read a results directory, of which nothing may be broken."""
    found = read_results(folder / "out")
    assert found.unreadable == (), found.unreadable
    for result in found.results:
        assert set(result.samples) == {"smallworld_choice"}, f"{result.path} lacks its samples"
        assert len(result.samples["smallworld_choice"].read_text().splitlines()) == 3
    return found


def _step(record: Path, block: int | None = None) -> int:
    """Return the step of a training's last checkpoint; 0 without one, or if it is another block's."""
    if not record.is_file():
        return 0
    found = json.loads(record.read_text())
    return int(found["step"]) if block is None or found["block"] == block else 0
