"""Progress of a quantization in a terminal, with remaining time."""

from __future__ import annotations

from rich.console import Console
from rich.progress import TaskID

from lowbit.cli.progress_bar import make_progress
from lowbit.contracts import QuantizedBlock, TrainingStep
from lowbit.pipeline.quantize import HookEvents
from lowbit.recipe import Recipe


class ProgressEvents(HookEvents):
    """Shows a bar over the decoder blocks, and passes events on to plugins.

    Args:
        recipe: The run's recipe.
        console: Where to draw.
    """

    def __init__(self, recipe: Recipe, console: Console) -> None:
        super().__init__(recipe)
        self._method = recipe.method
        self._training: TaskID | None = None
        self._progress = make_progress(console)

    def run_started(self, blocks: int, finished: int) -> None:
        """Open the bar; blocks that were finished earlier count as done."""
        super().run_started(blocks, finished)
        if finished:
            self._progress.console.print(f"continuing: {finished} of {blocks} blocks were finished before")
        if finished < blocks:
            self._progress.start()
            self._task = self._progress.add_task(f"{self._method}: blocks", total=blocks, completed=finished)

    def block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        """Advance the bar, and close it after the last block."""
        super().block_quantized(block, blocks)
        self._progress.advance(self._task)

    def training_step(self, step: TrainingStep) -> None:
        """Show the step and its loss on a bar of its own, which stands while the training lasts."""
        super().training_step(step)
        stage = step.stage if step.block is None else f"{step.stage} of block {step.block + 1}"
        held_out = "" if step.held_out_loss is None else f", held out {step.held_out_loss:.4g}"
        text = f"{self._method}: {stage}, loss {step.loss:.4g}{held_out}"
        if self._training is None:
            self._progress.start()
            self._training = self._progress.add_task(text, total=step.steps)
        self._progress.update(self._training, description=text, completed=step.step, total=step.steps)
        if step.step == step.steps:
            self._progress.remove_task(self._training)
            self._training = None

    def run_ended(self) -> None:
        """Remove the bar."""
        self._progress.stop()
