"""One quantization: from a recipe to a finished checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.contracts import QuantizedBlock, QuantizedLayer, RunEvents, TrainingStep
from lowbit.distillation.processes import (
    from_main_process,
    is_main_process,
    make_accelerator,
    ranks_of,
    several_processes,
)
from lowbit.documents import read_json
from lowbit.durable import make_directory, one_at_a_time, remove_leftovers, write_json
from lowbit.errors import LowbitError
from lowbit.memory_errors import memory_errors_told
from lowbit.modeling.bits_report import BitsReport
from lowbit.modeling.checkpoint_writer import PROVENANCE_FILE
from lowbit.modeling.journal import Journal, check_signature
from lowbit.models.configuration import MOST_CONFIG_BYTES, read_config_json
from lowbit.pipeline.make_checkpoint import journal_path, make_checkpoint
from lowbit.pipeline.prepare import Preparation, prepare
from lowbit.quantization.ranks import agreed
from lowbit.recipe import Recipe
from lowbit.registry import registry


@dataclass(frozen=True)
class QuantizationOutcome:
    """A finished checkpoint and what its making took.

    Args:
        checkpoint: The folder.
        bits: Bits three ways.
        coverage: Which share of the decoder is quantized.
        calibration: The calibration tokens' record, or `None`.
        layers: Per-layer reports.
        signature: What decides the checkpoint's bytes.
        training: Tokens, learning curves and diagnostics; `None` if nothing was trained.
        cost: Seconds, those of interrupted runs included, and peak memory of the last one.
    """

    checkpoint: Path
    bits: BitsReport
    coverage: dict[str, Any]
    calibration: dict[str, Any] | None
    layers: list[dict[str, Any]]
    signature: dict[str, Any]
    training: dict[str, Any] | None = None
    cost: dict[str, Any] = field(default_factory=dict)


def quantize_to(
    recipe: Recipe,
    output: Path,
    events: RunEvents,
    device: str = "cpu",
    ready: Preparation | None = None,
    wait: bool = True,
) -> QuantizationOutcome:
    """Quantize a model into a checkpoint folder, continuing an interrupted run of the same command.

    Of several processes of one run all must call this; only the main one writes and is heard by observers. Several
    runs that make the same checkpoint take turns: the first one makes it, and the others wait and find it, or are
    refused.

    Args:
        recipe: What to do.
        output: Where the finished folder appears; the journal lies beside it as `<output>.partial` until then.
        events: Observers.
        device: Where blocks are worked on.
        ready: What `prepare` returned for this recipe, if it was called before.
        wait: Whether to wait for another run that is making this checkpoint.

    Raises:
        LowbitError: Something a user can mend; finished blocks stay in the journal.
    """
    with failure_reported(recipe):
        require_writable(output)
        events = events if is_main_process() else NoEvents()
        with _alone(recipe, output, wait, device):
            ready = ready or prepare(recipe, device)
            if not _is_finished_for_all(output, ready.signature, device):
                cost = make_checkpoint(recipe, ready, output, events, device)
                if is_main_process():
                    write_json(cost_path(output), cost)
            if is_main_process():
                Journal(journal_path(output), recipe.packer.name, 0).remove()
            outcome = read_outcome(output)
        if is_main_process():
            _tell_finished(recipe, outcome)
        return outcome


def _tell_finished(recipe: Recipe, outcome: QuantizationOutcome) -> None:
    """Tell plugins of a finished checkpoint."""
    registry().notify(
        "lowbit_checkpoint_finished",
        recipe=recipe.to_dict(),
        checkpoint=outcome.checkpoint,
        bits=outcome.bits.model_dump(),
        cost=outcome.cost,
    )


@contextmanager
def _alone(recipe: Recipe, output: Path, wait: bool, device: str) -> Iterator[None]:
    """Keep other runs out of a checkpoint and its journal; the main process does so for all of this run's."""
    with ExitStack() as stack:
        ranks = ranks_of(make_accelerator(device) if several_processes() else None)
        with agreed(ranks):
            if is_main_process():
                stack.enter_context(one_at_a_time(lock_path(output), f"making {output} by {recipe.method}", wait))
                remove_leftovers(cost_path(output))
                stack.callback(_remove_if_useless, lock_path(output), output)
        yield


def _remove_if_useless(lock: Path, output: Path) -> None:
    """Remove the lock of a finished checkpoint, in which nobody works any more, or of one that was not begun."""
    if (output / PROVENANCE_FILE).is_file() or not journal_path(output).exists():
        lock.unlink(missing_ok=True)


def _is_finished_for_all(output: Path, signature: dict[str, Any], device: str) -> bool:
    """Say whether a checkpoint is there; processes of one run hear it from the one that held the lock."""
    if not several_processes():
        return is_finished(output, signature)
    make_accelerator(device)
    answer: tuple[bool, str | None] = (False, None)
    if is_main_process():
        try:
            answer = (is_finished(output, signature), None)
        except LowbitError as error:
            answer = (False, str(error))
    finished, refusal = from_main_process(answer)
    if refusal is not None:
        raise LowbitError(refusal)
    return bool(finished)


@contextmanager
def failure_reported(recipe: Recipe) -> Iterator[None]:
    """Tell plugins when what happens inside ends with an error or an interrupt.

    Raises:
        LowbitError: Memory did not suffice, whichever error said so.
    """
    try:
        with memory_errors_told():
            yield
    except BaseException as error:
        if is_main_process():
            registry().notify("lowbit_run_failed", recipe=recipe.to_dict(), error=error)
        raise


def cost_path(output: Path) -> Path:
    """Return where seconds and memory of a checkpoint's making are kept, outside its folder."""
    return output.with_name(output.name + ".cost.json")


def lock_path(output: Path) -> Path:
    """Return the lock of a checkpoint and its journal, which lies beside them until the checkpoint is finished."""
    return output.with_name(output.name + ".lock")


def require_writable(output: Path) -> None:
    """Check that a checkpoint can be put at `output`.

    Raises:
        LowbitError: Its parent cannot be written, or something else is there.
    """
    make_directory(output.parent)
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / PROVENANCE_FILE).is_file()):
        raise LowbitError(f"{output} exists and is no lowbit checkpoint; choose another output")


def is_finished(output: Path, signature: dict[str, Any]) -> bool:
    """Say whether the same command finished this checkpoint before.

    Raises:
        LowbitError: Another recipe made it; the message lists the differing keys.
    """
    provenance = output / PROVENANCE_FILE
    if not provenance.is_file():
        return False
    check_signature(
        _section(read_json(provenance, "provenance", MOST_CONFIG_BYTES), "signature", provenance), signature, output
    )
    return True


def read_outcome(checkpoint: Path) -> QuantizationOutcome:
    """Read back what a finished checkpoint says of itself."""
    config = _section(read_config_json(checkpoint), "quantization_config", checkpoint / "config.json")
    file = checkpoint / PROVENANCE_FILE
    provenance = read_json(file, "provenance", MOST_CONFIG_BYTES)
    cost = cost_path(checkpoint)
    try:
        return QuantizationOutcome(
            checkpoint=checkpoint,
            bits=BitsReport.model_validate(config["bits_report"]),
            coverage=config["coverage"],
            calibration=config["calibration"],
            layers=provenance["layers"],
            signature=_section(provenance, "signature", file),
            training=provenance.get("training"),
            cost=read_json(cost, "cost") if cost.is_file() else {},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LowbitError(f"{checkpoint} is damaged: {error}; delete it, and run its command again") from error


def _section(content: Any, key: str, file: Path) -> dict[str, Any]:
    """Return a mapping out of a file of JSON."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise LowbitError(f"{file} has no section {key!r}: it is damaged; delete its folder, and run the command again")
    return found


class HookEvents:
    """Passes the engine's events on to plugins.

    Args:
        recipe: The run's recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe.to_dict()

    def run_started(self, blocks: int, finished: int) -> None:
        """Pass on that a run starts."""
        registry().notify("lowbit_run_started", recipe=self._recipe, blocks=blocks, finished=finished)

    def tokens_generated(self, finished: int, batches: int) -> None:
        """Pass on that the parent wrote another batch of training tokens."""
        registry().notify("lowbit_tokens_generated", recipe=self._recipe, finished=finished, batches=batches)

    def layer_quantized(self, layer: QuantizedLayer) -> None:
        """Pass on that a weight was quantized."""
        registry().notify("lowbit_layer_quantized", layer=layer)

    def block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        """Pass on that a block was committed."""
        registry().notify("lowbit_block_quantized", block=block, blocks=blocks)

    def training_step(self, step: TrainingStep) -> None:
        """Pass on that an optimizer step was taken."""
        registry().notify("lowbit_distillation_step", step=step)

    def run_ended(self) -> None:
        """Do nothing; plugins hear of the end through `lowbit_run_finished` and `lowbit_run_failed`."""


class NoEvents:
    """Tells nobody anything: what the processes beside the main one observe."""

    def run_started(self, blocks: int, finished: int) -> None:
        """Do nothing."""

    def tokens_generated(self, finished: int, batches: int) -> None:
        """Do nothing."""

    def layer_quantized(self, layer: QuantizedLayer) -> None:
        """Do nothing."""

    def block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        """Do nothing."""

    def training_step(self, step: TrainingStep) -> None:
        """Do nothing."""

    def run_ended(self) -> None:
        """Do nothing."""
