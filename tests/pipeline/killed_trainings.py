"""Kills trainings in the middle of a step and finishes them; a program for a process of its own.

Each run is a fork of this process, so that nothing of a killed run is left in memory.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
from distillation.small_training import CALIBRATION, METHOD
from modeling.killed_runs import finish, hashes
from small_models import make_recipe

from lowbit.contracts import TrainingStep
from lowbit.pipeline.quantize import HookEvents, cost_path, quantize_to
from lowbit.recipe import Recipe

OPTIONS = {
    "reconstruction": {"steps": 4, "batch_size": 4, "n_samples": 4},
    "distillation": {
        "steps": 8, "batch_size": 4, "held_out": 2, "evaluate_every": 2, "checkpoint_every": 3,
        "loss": {"name": "dad", "mixing": 1.0},
    },
}  # fmt: skip


class Killer(HookEvents):
    """Ends the process at a training step, counted over both ways to train; writes down how many there were."""

    def __init__(self, recipe: Recipe, kill_at: int, count: Path) -> None:
        super().__init__(recipe)
        self._left = kill_at
        self._taken = 0
        self._count = count

    def training_step(self, step: TrainingStep) -> None:
        self._left -= 1
        self._taken += 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def run_ended(self) -> None:
        self._count.write_text(str(self._taken))


def run(recipe: Recipe, output: Path, kill_at: int = 0) -> int:
    """Run in a fork, and return how it ended."""
    output.parent.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            quantize_to(recipe, output, Killer(recipe, kill_at, output.parent / "count"))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return finish(child)


def main(parent: Path, root: Path, tokens: Path, kills: int) -> None:
    """Print how many steps an undisturbed run takes, and for each kill what came of the run."""
    torch.set_num_threads(1)
    recipe = make_recipe(parent, METHOD, calibration={"source": str(tokens)}, **CALIBRATION, **OPTIONS)
    assert run(recipe, root / "whole" / "out") == 0
    expected, steps = hashes(root / "whole" / "out"), int((root / "whole" / "count").read_text())
    drawn = random.Random(5)
    # The first falls into the reconstruction of the second block, the second between two checkpoints.
    trials = []
    for number, kill_at in enumerate([6, steps - 3, *(drawn.randint(1, steps) for _ in range(kills - 2))]):
        output = root / f"trial-{number}" / "out"
        killed = run(recipe, output, kill_at)
        left = sorted(file.name for file in output.parent.rglob("*"))
        again = run(recipe, output)
        trials.append(
            {
                "kill_at": kill_at,
                "killed": killed,
                "left": left,
                "again": again,
                "steps_again": int((output.parent / "count").read_text()),
                "identical": hashes(output) == expected,
                "seconds": json.loads(cost_path(output).read_text())["seconds"],
                "after": sorted(file.name for file in output.parent.iterdir()),
            }
        )
    print(json.dumps({"steps": steps, "trials": trials}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
