"""The making of one checkpoint: tokens, blocks, distillation, files; by one process or several."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from lowbit.calibration import CalibrationTokens
from lowbit.contracts import QuantizedWeight, RunEvents
from lowbit.distillation.processes import is_main_process, make_accelerator, ranks_of, several_processes
from lowbit.distillation.training_store import TrainingStore
from lowbit.modeling.checkpoint_writer import Provenance, write_checkpoint
from lowbit.modeling.journal import Journal
from lowbit.pipeline.prepare import Preparation, training_length
from lowbit.pipeline.resources import PeakMemory
from lowbit.pipeline.training import TRAINING, block_trainer, distill, training_record, training_tokens
from lowbit.quantization.engine import Engine
from lowbit.quantization.plan import require_covered
from lowbit.quantization.ranks import agreed
from lowbit.recipe import Recipe
from lowbit.registry import registry

GENERATED = "generated"


def journal_path(output: Path) -> Path:
    """Return where the journal of a checkpoint lies while it is made."""
    return output.with_name(output.name + ".partial")


def make_checkpoint(
    recipe: Recipe, ready: Preparation, output: Path, events: RunEvents, device: str
) -> dict[str, float]:
    """Quantize and train what the journal lacks, write the checkpoint, and return seconds and memory.

    Of several processes all quantize and distill; the main one reconstructs blocks and writes.

    Args:
        recipe: What to do.
        ready: What `prepare` returned for it.
        output: Where the finished folder appears.
        events: Observers.
        device: Where to work.

    Raises:
        LowbitError: Something a user can mend; finished work stays in the journal.
    """
    started = time.monotonic()
    processes = make_accelerator(device) if recipe.distillation is not None or several_processes() else None
    ranks = ranks_of(processes)
    if processes is not None and ranks.size > 1:
        ready.source.device = processes.device  # Each process works on its own.
    earlier = 0.0
    with PeakMemory() as memory:
        try:
            with agreed(ranks):
                tokens = _tokens(recipe, ready, output, device, events) if is_main_process() else None
            with agreed(ranks):
                # What the main process let the parent write lies there for all.
                tokens = tokens or _tokens(recipe, ready, output, device, events)
                seen = None if tokens is None else _seen_by_blocks(recipe, tokens)
                journal = Journal(journal_path(output), recipe.packer.name, 0 if seen is None else len(seen))
                if is_main_process():
                    journal.open(ready.signature)
                    earlier = sum(report["seconds"] for report in journal.reports())
                    earlier += TrainingStore(journal.path / TRAINING).seconds()
            trainer = block_trainer(recipe, events, device, journal.path)
            formats = registry().format
            Engine(ready.source, ready.plan, journal, events, diagnose, recipe.seed, trainer, ranks, formats).run(seen)
            finished = journal
            if recipe.distillation is not None and processes is not None:
                assert tokens is not None
                finished = distill(
                    recipe, ready.folder, ready.plan, journal, tokens.tokens, processes, events, diagnose
                )
        finally:
            events.run_ended()
        with agreed(ranks):
            if is_main_process():
                _write(recipe, ready, output, journal, finished, tokens)
    return {
        "seconds": earlier + time.monotonic() - started,
        "peak_memory_bytes": memory.peak_bytes,
        "peak_memory_above_start_bytes": memory.peak_bytes - memory.start_bytes,
        "peak_device_memory_bytes": memory.device_bytes,
    }


def _seen_by_blocks(recipe: Recipe, tokens: CalibrationTokens) -> Tensor:
    """Return the sequences that run through the blocks one by one, int64 [samples, length]."""
    most = None if recipe.reconstruction is None else recipe.reconstruction.n_samples
    return tokens.tokens[:most]


def _tokens(
    recipe: Recipe, ready: Preparation, output: Path, device: str, events: RunEvents
) -> CalibrationTokens | None:
    """Return the tokens that the run sees: those of training, if it trains."""
    if not recipe.trains:
        return ready.calibration
    length = training_length(recipe, ready.source)
    store = output.parent / GENERATED
    return training_tokens(recipe, ready.folder, ready.calibration, length, device, store, events.tokens_generated)


def _write(
    recipe: Recipe,
    ready: Preparation,
    output: Path,
    journal: Journal,
    finished: Journal,
    tokens: CalibrationTokens | None,
) -> None:
    require_covered(ready.plan.quantizers, {name for report in finished.reports() for name in report["modules"]})
    training: dict[str, Any] | None = None
    if recipe.trains and tokens is not None:
        training = training_record(recipe, tokens, journal, None if finished is journal else finished)
    provenance = Provenance(
        recipe=recipe.checkpoint_part(),
        signature=ready.signature,
        calibration=ready.signature["calibration"],
        coverage=ready.plan.coverage().to_dict(),
        parent=ready.folder.name,
        training=training,
    )
    write_checkpoint(ready.source, finished, output, provenance, recipe.max_shard_size)


def diagnose(quantized: QuantizedWeight) -> dict[str, float]:
    """Return every plugin's numbers about one quantized weight."""
    merged: dict[str, float] = {}
    for numbers in registry().hook.lowbit_diagnostics(quantized=quantized):
        merged.update(numbers)
    return merged
