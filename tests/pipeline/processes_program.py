"""Trains in every process that a launcher started; prints nothing, and writes what each process saw.

Arguments: parent, folder of results, tokens, JSON of runs: name, distillation settings, whether weights are shared out
among the processes, and after how many steps the run is interrupted before it is continued.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from distillation.small_training import CALIBRATION, METHOD
from small_models import make_recipe

from lowbit.contracts import TrainingStep
from lowbit.distillation import trainer
from lowbit.distillation.curve import Curve
from lowbit.distillation.processes import part_from_others
from lowbit.distillation.sharding import own_part, shard
from lowbit.distillation.student import Body
from lowbit.pipeline.quantize import HookEvents, quantize_to


class Listener(HookEvents):
    """Keeps a file for every step that it hears of."""

    folder: Path

    def training_step(self, step: TrainingStep) -> None:
        (self.folder / f"heard-by-{os.environ['RANK']}").touch()


def witnessed(file: Path, student: Body, *rest: Any) -> None:
    """Share out a student's weights, and write down how large this process's part is."""
    before = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    shard(student, *rest)
    after = sum(own_part(parameter).numel() for parameter in student.parameters() if parameter.requires_grad)
    file.write_text(str(after / before))


@contextmanager
def stopped(after: int) -> Iterator[None]:
    """Interrupt a training in every process once it took so many steps."""
    take_step = trainer.Trainer._take_step

    def take_or_stop(self: trainer.Trainer, curve: Curve) -> None:
        if len(curve.losses) == after:
            raise KeyboardInterrupt
        take_step(self, curve)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_take_step", take_or_stop)
        yield


def main(parent: Path, root: Path, tokens: Path, runs: list[dict]) -> None:
    """Run everything."""
    torch.set_num_threads(1)
    for run in runs:
        os.environ["ACCELERATE_USE_FSDP"] = str(run["sharded"]).lower()
        flags = {"calibration": {"source": str(tokens)}, **CALIBRATION}
        recipe = make_recipe(parent, METHOD, **flags, distillation=run["settings"])
        events = Listener(recipe)
        events.folder = root
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "shard", partial(witnessed, root / f"split-{run['name']}-{os.environ['RANK']}"))
            if run["stop_after"] is not None:
                with stopped(run["stop_after"]), pytest.raises(KeyboardInterrupt):
                    quantize_to(recipe, root / run["name"], events)
            quantize_to(recipe, root / run["name"], events)
    part_from_others()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
