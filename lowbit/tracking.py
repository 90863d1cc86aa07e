"""What plugins for experiment trackers share: the events of a run as one tracked run a method."""

from __future__ import annotations

import atexit
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lowbit.hookspecs import EventHooks, hookimpl

if TYPE_CHECKING:
    from lowbit.contracts import QuantizedBlock, TrainingStep


class RunTracker(ABC):
    """Tells an experiment tracker of runs: one tracked run a method, which is always finished, also after a failure.

    A plugin subclasses it with three methods, makes one, and puts `hooks()` among its module's names.
    """

    def __init__(self) -> None:
        self._recipe: Mapping[str, Any] | None = None
        atexit.register(self.close)

    @abstractmethod
    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a tracked run.

        Args:
            name: Model and method.
            config: The recipe as plain values.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float]) -> None:
        """Log numbers by name, at the next step."""

    @abstractmethod
    def finish(self, error: str | None) -> None:
        """Finish the tracked run and write out what is left; `error` says why it failed."""

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """Return the event hooks by name, to become names of the plugin's module."""
        return {name: getattr(self, name) for name in dir(self) if hasattr(EventHooks, name) and name[:1] != "_"}

    def close(self, error: str | None = None) -> None:
        """Finish the tracked run, if one is open."""
        if self._recipe is not None:
            self._recipe = None
            self.finish(error)

    def _open(self, recipe: Mapping[str, Any]) -> None:
        """Start a tracked run, unless that of this recipe is open."""
        if self._recipe == recipe:
            return
        self.close()
        model = str((recipe.get("model") or {}).get("path") or "embedded").rstrip("/").rpartition("/")[2]
        self.start(f"{model}-{recipe['method']}", recipe)
        self._recipe = recipe

    def _log(self, values: Mapping[str, Any]) -> None:
        """Log what is a number, where a tracked run is open."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if self._recipe is not None and numbers:
            self.log(numbers)

    @hookimpl
    def lowbit_run_started(self, recipe: Mapping[str, Any]) -> None:
        """Start a tracked run."""
        self._open(recipe)

    @hookimpl
    def lowbit_block_quantized(self, block: QuantizedBlock) -> None:
        """Log a block's seconds, and the relative error of each layer, their mean and the largest."""
        errors = {report.name: report.relative_error for report in block.reports}
        values = {"block/number": block.index + 1, "block/seconds": block.seconds}
        if errors:
            values |= {"block/error": sum(errors.values()) / len(errors), "block/largest_error": max(errors.values())}
        self._log({**values, **{f"layer_error/{name}": error for name, error in errors.items()}})

    @hookimpl
    def lowbit_distillation_step(self, step: TrainingStep) -> None:
        """Log a step's loss, learning rate and held-out loss."""
        block = {} if step.block is None else {"block": step.block + 1}
        values = {"step": step.step, "loss": step.loss, "held_out_loss": step.held_out_loss, "rate": step.rate, **block}
        self._log({f"{step.stage}/{name}": value for name, value in values.items()})

    @hookimpl
    def lowbit_checkpoint_finished(
        self, recipe: Mapping[str, Any], bits: Mapping[str, Any], cost: Mapping[str, float]
    ) -> None:
        """Log bits, seconds and memory."""
        self._open(recipe)
        costs = {f"cost/{name}": value for name, value in cost.items()}
        self._log({f"bits/{name.removesuffix('_bits')}": value for name, value in bits.items()} | costs)

    @hookimpl
    def lowbit_run_finished(self, result: Mapping[str, Any]) -> None:
        """Log every metric beside the parent's and the recovery, and finish."""
        self._open(result["recipe"])
        self._log(
            {
                f"{kind}/{task}/{key.removesuffix(',none')}": value
                for task, metrics in result["recovery"].items()
                for key, numbers in metrics.items()
                for kind, value in numbers.items()
            }
        )
        self.close()

    @hookimpl
    def lowbit_run_failed(self, recipe: Mapping[str, Any], error: BaseException) -> None:
        """Finish as failed; a run that failed before it started is tracked, too."""
        self._open(recipe)
        self.close(f"{type(error).__name__}: {error}")
