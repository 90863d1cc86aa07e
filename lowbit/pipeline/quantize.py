"""One quantization: from a recipe to a finished checkpoint folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from lowbit.calibration import (
    TOKEN_FILE_SUFFIX,
    CalibrationTokens,
    TokenRequest,
    load_calibration,
    token_file_shape,
)
from lowbit.contracts import DataAccess, QuantizedBlock, QuantizedWeight, RunEvents, TrainingStep
from lowbit.durable import make_directory, write_json
from lowbit.embedded import calibration_path, model_path
from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import DEFAULT_CONTEXT_LENGTH, model_positions
from lowbit.modeling.bits_report import BitsReport
from lowbit.modeling.checkpoint_writer import PROVENANCE_FILE, Provenance, write_checkpoint
from lowbit.modeling.journal import Journal, check_signature
from lowbit.models.checkpoint import find_model_folder
from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.identity import calibration_record, run_signature
from lowbit.pipeline.load import load_tokenizer
from lowbit.pipeline.resources import PeakMemory, require_device
from lowbit.pipeline.targets import plan_for
from lowbit.pipeline.training import block_trainer, distill, require_trainable_plan, training_tokens
from lowbit.quantization.engine import Engine
from lowbit.quantization.plan import QuantizationPlan, require_covered
from lowbit.recipe import Recipe
from lowbit.registry import registry

DEFAULT_CALIBRATION = "c4"
DEFAULT_SAMPLES = 128
GENERATED = "generated"


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
        cost: Seconds, those of interrupted runs included, and peak memory of the last one.
    """

    checkpoint: Path
    bits: BitsReport
    coverage: dict[str, Any]
    calibration: dict[str, Any] | None
    layers: list[dict[str, Any]]
    signature: dict[str, Any]
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation:
    """Everything that is known before the first weight is read."""

    folder: Path
    source: StreamedModel
    plan: QuantizationPlan
    calibration: CalibrationTokens | None
    signature: dict[str, Any]


def model_folder(recipe: Recipe) -> Path:
    """Return the folder of a recipe's model; without one, the embedded model's."""
    if recipe.model.path is None:
        return model_path()
    return find_model_folder(recipe.model.path, recipe.model.revision)


def prepare(recipe: Recipe, device: str = "cpu") -> Preparation:
    """Build the model's structure, the plan and the calibration tokens.

    Raises:
        LowbitError: The model, a rule or the calibration does not hold up.
    """
    if recipe.quantizer is None:
        raise LowbitError(f"method {recipe.method!r} quantizes nothing; it can be benched, but not saved")
    require_device(device)
    folder = model_folder(recipe)
    source = StreamedModel(folder, recipe.model.trust_remote_code, device)
    plan = plan_for(recipe, source.decoder, registry())
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    require_trainable_plan(recipe, plan)
    tokens = calibration_tokens(recipe, source, tokenizer) if _needs_calibration(recipe, plan) else None
    record = calibration_record(tokens, recipe.seed)
    signature = run_signature(recipe, source.checkpoint.sha256(), record, registry())
    return Preparation(folder, source, plan, tokens, signature)


def _needs_calibration(recipe: Recipe, plan: QuantizationPlan) -> bool:
    trained_on = recipe.trains and recipe.training_data.source != "generated"
    return trained_on or (plan.needs_statistics and recipe.reconstruction is None)


def calibration_tokens(recipe: Recipe, source: StreamedModel, tokenizer: Any) -> CalibrationTokens:
    """Load the calibration tokens of a recipe."""
    return load_calibration(
        _calibration_name(recipe),
        registry().calibration_source,
        lambda text: list(tokenizer(text, verbose=False)["input_ids"]),
        calibration_request(recipe, source),
        DataAccess(None if recipe.eval.data_dir is None else Path(recipe.eval.data_dir)),
    )


def _calibration_name(recipe: Recipe) -> str:
    default = str(calibration_path()) if recipe.model.path is None else DEFAULT_CALIBRATION
    return recipe.calibration.source or default


def calibration_request(recipe: Recipe, source: StreamedModel) -> TokenRequest:
    """Return how many calibration tokens are wanted: as asked for, else all of a token file, else 128 x 2048.

    Sequences are never longer than the model's positions.

    Raises:
        LowbitError: More tokens a sequence are asked for than the model has positions, or a token file is damaged.
    """
    positions = model_positions(source.config) or DEFAULT_CONTEXT_LENGTH
    name = _calibration_name(recipe)
    samples, length = DEFAULT_SAMPLES, DEFAULT_CONTEXT_LENGTH
    if name.endswith(TOKEN_FILE_SUFFIX):
        samples, length = token_file_shape(Path(name))
    wanted = recipe.calibration
    if wanted.seq_len is not None and wanted.seq_len > positions:
        raise LowbitError(f"--seq_len {wanted.seq_len} exceeds the model's {positions} positions")
    return TokenRequest(
        n_samples=wanted.n_samples or samples,
        seq_len=wanted.seq_len or min(length, positions),
        vocabulary=source.config.vocab_size,
        seed=recipe.seed,
    )


def quantize_to(
    recipe: Recipe, output: Path, events: RunEvents, device: str = "cpu", ready: Preparation | None = None
) -> QuantizationOutcome:
    """Quantize a model into a checkpoint folder, continuing an interrupted run of the same command.

    Args:
        recipe: What to do.
        output: Where the finished folder appears; the journal lies beside it as `<output>.partial` until then.
        events: Observers.
        device: Where blocks are worked on.
        ready: What `prepare` returned for this recipe, if it was called before.

    Raises:
        LowbitError: Something a user can mend; finished blocks stay in the journal.
    """
    with failure_reported(recipe):
        require_writable(output)
        ready = ready or prepare(recipe, device)
        if not is_finished(output, ready.signature):
            write_json(cost_path(output), _make_checkpoint(recipe, ready, output, events, device, None))
        Journal(journal_path(output), recipe.packer.name, 0).remove()
        return read_outcome(output)


def _make_checkpoint(
    recipe: Recipe, ready: Preparation, output: Path, events: RunEvents, device: str, processes: Accelerator | None
) -> dict[str, float]:
    """Quantize and train what the journal lacks, write the checkpoint, and return seconds and memory."""
    started = time.monotonic()
    with PeakMemory() as memory:
        tokens = _tokens(recipe, ready, output, device)
        journal = Journal(journal_path(output), recipe.packer.name, 0 if tokens is None else len(tokens))
        journal.open(ready.signature)
        earlier = sum(report["seconds"] for report in journal.reports())
        trainer = block_trainer(recipe, events, device)
        engine = Engine(ready.source, ready.plan, journal, events, _diagnose, recipe.seed, trainer)
        try:
            engine.run(tokens)
            finished = journal
            if recipe.distillation is not None:
                assert tokens is not None
                accelerator = Accelerator(cpu=device == "cpu")
                finished = distill(recipe, ready.folder, ready.plan, journal, tokens, accelerator, events, _diagnose)
        finally:
            events.run_ended()
        require_covered(ready.plan.quantizers, {name for report in finished.reports() for name in report["modules"]})
        write_checkpoint(ready.source, finished, output, _provenance(recipe, ready), recipe.max_shard_size)
    return {
        "seconds": earlier + time.monotonic() - started,
        "peak_memory_bytes": memory.peak_bytes,
        "peak_memory_above_start_bytes": memory.peak_bytes - memory.start_bytes,
        "peak_device_memory_bytes": memory.device_bytes,
    }


def _tokens(recipe: Recipe, ready: Preparation, output: Path, device: str) -> Tensor | None:
    """Return the tokens that the run sees, int64 [samples, length]: those of training, if it trains."""
    if not recipe.trains:
        return None if ready.calibration is None else ready.calibration.tokens
    length = calibration_request(recipe, ready.source).seq_len
    store = output.parent / GENERATED
    return training_tokens(recipe, ready.folder, ready.calibration, length, device, store).tokens


@contextmanager
def failure_reported(recipe: Recipe) -> Iterator[None]:
    """Tell plugins when what happens inside ends with an error or an interrupt."""
    try:
        yield
    except BaseException as error:
        registry().hook.lowbit_run_failed(recipe=recipe.to_dict(), error=error)
        raise


def journal_path(output: Path) -> Path:
    """Return where the journal of a checkpoint lies while it is made."""
    return output.with_name(output.name + ".partial")


def cost_path(output: Path) -> Path:
    """Return where seconds and memory of a checkpoint's making are kept, outside its folder."""
    return output.with_name(output.name + ".cost.json")


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
    check_signature(json.loads(provenance.read_text(encoding="utf-8"))["signature"], signature, output)
    return True


def read_outcome(checkpoint: Path) -> QuantizationOutcome:
    """Read back what a finished checkpoint says of itself."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    provenance = json.loads((checkpoint / PROVENANCE_FILE).read_text(encoding="utf-8"))
    cost = cost_path(checkpoint)
    return QuantizationOutcome(
        checkpoint=checkpoint,
        bits=BitsReport.model_validate(config["bits_report"]),
        coverage=config["coverage"],
        calibration=config["calibration"],
        layers=provenance["layers"],
        signature=provenance["signature"],
        cost=json.loads(cost.read_text(encoding="utf-8")) if cost.is_file() else {},
    )


def _provenance(recipe: Recipe, ready: Preparation) -> Provenance:
    return Provenance(
        recipe=recipe.checkpoint_part(),
        signature=ready.signature,
        calibration=ready.signature["calibration"],
        coverage=ready.plan.coverage().to_dict(),
        parent=ready.folder.name,
    )


def _diagnose(quantized: QuantizedWeight) -> dict[str, float]:
    merged: dict[str, float] = {}
    for numbers in registry().hook.lowbit_diagnostics(quantized=quantized):
        merged.update(numbers)
    return merged


class HookEvents:
    """Passes the engine's events on to plugins.

    Args:
        recipe: The run's recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe.to_dict()

    def run_started(self, blocks: int, finished: int) -> None:
        """Pass on that a run starts."""
        registry().hook.lowbit_run_started(recipe=self._recipe, blocks=blocks, finished=finished)

    def block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        """Pass on that a block was committed."""
        registry().hook.lowbit_block_quantized(block=block, blocks=blocks)

    def training_step(self, step: TrainingStep) -> None:
        """Pass on that an optimizer step was taken."""
        registry().hook.lowbit_distillation_step(step=step)

    def run_ended(self) -> None:
        """Do nothing; plugins hear of the end through `lowbit_run_finished` and `lowbit_run_failed`."""
