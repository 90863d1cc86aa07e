"""Tracks runs with Weights & Biases: `lowbit bench --plugin lowbit_wandb`.

The library's own environment variables configure it: `WANDB_PROJECT` (here `lowbit` when unset), `WANDB_ENTITY`,
`WANDB_NAME`, `WANDB_MODE=offline`, `WANDB_DIR`, ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lowbit import LowbitError, RunTracker

try:
    import wandb
except ImportError as missing:
    raise LowbitError("lowbit_wandb needs Weights & Biases: pip install 'lowbit[wandb]'") from missing


class WeightsAndBiases(RunTracker):
    """One run of Weights & Biases a method."""

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a run; its output is not captured, so that the live view stays whole."""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lowbit"),
            name=os.environ.get("WANDB_NAME", name),
            config=dict(config),
            settings=wandb.Settings(console="off"),
        )
        for stage in ("reconstruction", "distillation", "block"):
            axis = f"{stage}/number" if stage == "block" else f"{stage}/step"
            self._run.define_metric(axis)
            if stage != "reconstruction":  # Its steps begin anew in each block.
                self._run.define_metric(f"{stage}/*", step_metric=axis)

    def log(self, values: Mapping[str, float]) -> None:
        """Log numbers."""
        self._run.log(dict(values))

    def finish(self, error: str | None) -> None:
        """Finish the run, as failed when there is an error."""
        if error is not None:
            self._run.summary["error"] = error
        self._run.finish(exit_code=0 if error is None else 1)


globals().update(WeightsAndBiases().hooks())
