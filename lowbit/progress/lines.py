"""Observes a run: keeps its state up to date and says each thing that happens in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowbit.contracts import EvaluationStep, QuantizedBlock, QuantizedLayer, TrainingStep
from lowbit.hookspecs import hookimpl
from lowbit.progress.state import Counter, RunState, duration, errors_of
from lowbit.results.metrics import primary_metrics

SECONDS_BETWEEN_LINES = 5.0


class RunLines:
    """An observer on nothing but the event hooks.

    Args:
        state: What it keeps up to date.
        write: Prints a line.
        detailed: Whether layers and timings are said, too.
        blocks: Whether to say each block and now and then a step; a live view shows these itself.
        clock: Tells seconds.
    """

    def __init__(
        self,
        state: RunState,
        write: Callable[[str], None],
        detailed: bool = False,
        blocks: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._write = write
        self._detailed = detailed
        self._blocks = blocks or self._detailed
        self._clock = clock
        self._said = self._began = clock()

    def _counter(self, text: str, total: int | None, done: int = 0) -> Counter:
        return Counter(text, total, done, self._clock)

    @hookimpl
    def lowbit_tokens_generated(self, recipe: Mapping[str, Any], finished: int, batches: int) -> None:
        """Count batches of generated text."""
        state = self._state
        if state.tokens is None:
            state.at_work(recipe)
            state.tokens = self._counter("generated batches", batches, finished)
        state.tokens.done = finished
        self._say_now_and_then(state.tokens, "", last=finished == batches)
        if finished == batches:
            state.tokens = None

    @hookimpl
    def lowbit_run_started(self, recipe: Mapping[str, Any], blocks: int, finished: int) -> None:
        """Begin to count blocks."""
        state = self._state
        state.clear()
        state.at_work(recipe)
        state.blocks = self._counter("blocks", blocks, finished)
        if finished:
            self._write(f"{state.title}: continuing: {finished} of {blocks} blocks were finished before")

    @hookimpl
    def lowbit_layer_quantized(self, layer: QuantizedLayer) -> None:
        """Count the layers of the block at work."""
        state = self._state
        if layer.number == 1 or state.layers is None:
            state.layers = self._counter(f"layers of block {layer.block + 1}", layer.layers)
        state.layers.done = layer.number
        if self._detailed:
            self._write(f"{state.title}: layer {layer.name} quantized, {duration(layer.seconds)}")
        elif self._blocks:
            self._say_now_and_then(state.layers, "")

    @hookimpl
    def lowbit_block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        """Count blocks, and say how good the layers are."""
        state = self._state
        state.layers = state.training = None
        state.reports, state.block = block.reports, block.index
        state.memory.look()
        left = ""
        if state.blocks is not None:
            state.blocks.done = block.index + 1
            rest = state.blocks.remaining
            left = f", {duration(rest)} left" if rest else ""
        if self._blocks:
            what = f"block {block.index + 1} of {blocks}: {errors_of(block.reports)}, {duration(block.seconds)}"
            self._write(f"{state.title}: {what}, {state.memory}{left}")
            self._said = self._clock()
        for report in block.reports:
            if self._detailed:
                self._write(f"{state.title}: {report.name} error {report.relative_error:.5f}{_numbers(report)}")
            for note in report.notes:
                self._write(f"{state.title}: warning: {report.name}: {note}")

    @hookimpl
    def lowbit_distillation_step(self, step: TrainingStep) -> None:
        """Count steps of a training."""
        state = self._state
        text = step.stage if step.block is None else f"{step.stage} of block {step.block + 1}"
        if state.training is None or not state.training.text.startswith(text):
            state.training = self._counter(text, step.steps, step.step - 1)
        held_out = "" if step.held_out_loss is None else f", held out {step.held_out_loss:.4g}"
        state.training.text = f"{text}: loss {step.loss:.4g}{held_out}"
        state.training.done = step.step
        last = step.step == step.steps
        self._say_now_and_then(state.training, "step ", last=last and step.block is None)
        if last:
            state.training = None

    @hookimpl
    def lowbit_checkpoint_finished(self, recipe: Mapping[str, Any], cost: Mapping[str, float]) -> None:
        """Say what the making of the checkpoint took."""
        state = self._state
        state.clear()
        state.at_work(recipe)
        if self._detailed and cost:
            peak = f"peak memory {cost['peak_memory_bytes'] / 1e6:.0f} MB"
            self._write(f"{state.title}: checkpoint made in {duration(cost['seconds'])}, {peak}")

    @hookimpl
    def lowbit_evaluation_started(self, recipe: Mapping[str, Any], role: str, tasks: Sequence[str]) -> None:
        """Note which model is evaluated."""
        state = self._state
        state.clear()
        state.at_work(recipe, None if role == "quantized" else role)
        state.evaluation = self._counter(f"preparing {', '.join(tasks)}", None)
        self._began = self._said = self._clock()

    @hookimpl
    def lowbit_evaluation_step(self, step: EvaluationStep) -> None:
        """Count requests."""
        state = self._state
        text = f"{step.unit} of {_some(step.tasks)}"
        if state.evaluation is None or state.evaluation.text != text or step.done < state.evaluation.done:
            state.evaluation = self._counter(text, step.total, step.done)
        state.evaluation.done = step.done
        self._say_now_and_then(state.evaluation, "")

    @hookimpl
    def lowbit_evaluation_finished(self, recipe: Mapping[str, Any], role: str, results: Mapping[str, Any]) -> None:
        """Say the metrics."""
        state = self._state
        state.evaluation = None
        measured = primary_metrics(results).values()
        metrics = ", ".join(f"{metric.task} {metric.name} {metric.value:.4g}" for metric in measured)
        self._write(f"{state.title}: {metrics or 'no metric'}, {duration(self._clock() - self._began)}")

    @hookimpl
    def lowbit_run_failed(self, recipe: Mapping[str, Any], error: BaseException) -> None:
        """Forget what was at work; the command itself says the error."""
        self._state.clear()

    def _say_now_and_then(self, counter: Counter, unit: str, last: bool = False) -> None:
        """Say how far a counter is, at most every few seconds."""
        now = self._clock()
        if not self._blocks or (now - self._said < SECONDS_BETWEEN_LINES and not last):
            return
        self._said = now
        self._state.memory.look()
        rest = counter.remaining
        left = f", {duration(rest)} left" if rest else ""
        self._write(f"{self._state.title}: {counter.text}: {unit}{counter.count}, {self._state.memory}{left}")


def _some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _numbers(report: Any) -> str:
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in report.diagnostics.items())
    return f", {report.nominal_bits:.3g} bits" + (f", {numbers}" if numbers else "")
