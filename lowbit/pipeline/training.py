"""Training as a part of a run: its tokens, the block trainer, and the distillation of the whole model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lowbit.calibration import CalibrationTokens
from lowbit.contracts import (
    QuantizedBlock,
    QuantizedWeight,
    ReconstructionSettings,
    RunEvents,
)
from lowbit.distillation.objective import Objective
from lowbit.distillation.parametrized import ParametrizedWeights, require_trainable
from lowbit.distillation.processes import is_sharded
from lowbit.distillation.reconstruction import BlockReconstruction
from lowbit.distillation.remembered_teacher import RememberedTeacher, remembered_bytes
from lowbit.distillation.student import Body, Head, without_dropout
from lowbit.distillation.trainer import Distillation, Trainer
from lowbit.distillation.training_store import TrainingStore
from lowbit.durable import write_json
from lowbit.modeling.journal import Journal
from lowbit.models.freed_memory import kept_freed_memory
from lowbit.pipeline.generate import generate_tokens
from lowbit.pipeline.load import load
from lowbit.pipeline.trained_model import TrainedModel
from lowbit.pipeline.training_diagnostics import TrainingDiagnostics
from lowbit.quantization.block_training import TrainableWeight
from lowbit.quantization.plan import QuantizationPlan
from lowbit.recipe import Recipe, build_losses
from lowbit.registry import registry
from lowbit.results.layer_summary import summarize_layers

DISTILLED = "distilled"
TRAINING = "training"
RECONSTRUCTION = "reconstruction"
RECORD_FILE = "distillation.json"


def training_source(recipe: Recipe) -> str:
    """Return where training tokens come from: `calibration`, `generated` or `both`."""
    source = recipe.training_data.source
    if source != "auto":
        return source
    named = recipe.calibration.source is not None or recipe.model.path is None
    return "both" if named else "generated"


def training_tokens(
    recipe: Recipe,
    parent: Path,
    calibration: CalibrationTokens | None,
    length: int,
    device: str,
    store: Path,
    announce: Callable[[int, int], None] = lambda finished, batches: None,
) -> CalibrationTokens:
    """Return the tokens that weights are trained on: calibration tokens, generated ones, or both in random order.

    Args:
        recipe: Says which.
        parent: Folder of the model that generates.
        calibration: The calibration tokens, if the recipe trains on them.
        length: Tokens a sequence; calibration sequences are cut into such pieces.
        device: Where the model generates.
        store: Where generated tokens are kept.
        announce: Hears how many batches are generated, and of how many.
    """
    settings, source = recipe.training_data, training_source(recipe)
    if calibration is not None:
        calibration = replace(calibration, tokens=_pieces(calibration.tokens, length))
    if source == "calibration":
        assert calibration is not None
        return calibration
    generated = generate_tokens(
        parent,
        settings.generated,
        length,
        recipe.seed,
        device,
        store,
        announce,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    if source == "generated":
        return generated
    assert calibration is not None
    both = torch.cat([calibration.tokens, generated.tokens])  # [samples, length]
    # The last sequences are held out of training: in random order, they are of both kinds.
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(recipe.seed))
    return CalibrationTokens(both[order], f"{calibration.name} and {generated.name}", calibration.domain)


def _pieces(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Cut sequences [samples, longer] into pieces [more samples, length]; what is left of each is dropped."""
    whole = tokens.shape[1] // length
    return tokens[:, : whole * length].reshape(-1, length)


def require_trainable_plan(recipe: Recipe, plan: QuantizationPlan) -> None:
    """Check that everything that a recipe trains can be trained.

    Raises:
        LowbitError: A quantizer offers no training.
    """
    if recipe.trains:
        for quantizer in plan.quantizers.values():
            require_trainable(quantizer)


def block_trainer(recipe: Recipe, events: RunEvents, device: str, journal: Path) -> BlockReconstruction | None:
    """Return what reconstructs blocks, if the recipe says so.

    Args:
        recipe: Its `reconstruction` says how.
        events: Observers.
        device: Where to work.
        journal: The journal's folder, in which the training of an unfinished block is kept.
    """
    settings: ReconstructionSettings | None = recipe.reconstruction
    if settings is None:
        return None
    store = TrainingStore(journal / RECONSTRUCTION)
    return BlockReconstruction(settings, recipe.seed, events.training_step, device, store)


def distill(
    recipe: Recipe,
    parent: Path,
    plan: QuantizationPlan,
    journal: Journal,
    tokens: torch.Tensor,
    accelerator: Accelerator,
    events: RunEvents,
    diagnose: Callable[[QuantizedWeight], Mapping[str, float]],
) -> Journal:
    """Train the whole quantized model against its parent, and return the journal of the trained blocks.

    Every process takes part; the main one writes. What was finished by an interrupted run is not done again.

    Args:
        recipe: Its `distillation` says how.
        parent: Folder of the teacher.
        plan: What is quantized.
        journal: Holds the quantized blocks, and the state that their own training ended with.
        tokens: int64 [samples, length].
        accelerator: Processes and device.
        events: Observers.
        diagnose: Returns plugins' numbers about one quantized weight.
    """
    settings = recipe.distillation
    assert settings is not None
    distilled = Journal(journal.path / DISTILLED, recipe.packer.name, 0)
    if distilled.finished() == len(plan.blocks):
        return distilled
    blocks = [journal.block(index) for index in range(len(plan.blocks))]
    pair = _teacher_and_student(recipe, parent, accelerator.device)
    work, head = _work(recipe, pair, plan, blocks, tokens)
    store = TrainingStore(journal.path / TRAINING)
    trainer = Trainer(work, settings, recipe.seed, store, accelerator, events.training_step)
    watched = TrainingDiagnostics(work, head, settings, pair.student.config.vocab_size, accelerator.device)
    before = watched.deviation()
    with kept_freed_memory():
        curve = trainer.run()
    deviation = {"before": before, "after": watched.deviation()}
    frozen = work.weights.freeze()
    outputs = watched.outputs(pair.student, pair.teacher, plan, frozen)
    trained = TrainedModel(plan, frozen, work.weights.unquantized_values(), pair.teacher, outputs, diagnose)
    if accelerator.is_main_process:
        distilled.open({})
        write_json(distilled.path / RECORD_FILE, {**curve.to_dict(), "deviation": deviation})
        for block in blocks[distilled.finished() :]:
            distilled.commit(trained.block(block))
    accelerator.wait_for_everyone()
    return distilled


@dataclass(frozen=True)
class _Pair:
    """Teacher and student, whole transformers models."""

    teacher: Any
    student: Any


def _teacher_and_student(recipe: Recipe, parent: Path, device: torch.device) -> _Pair:
    """Load the parent twice, once frozen in its own dtype and once in float32 to be trained."""
    # A student whose weights are shared out moves to the device in parts, as it need not fit as a whole.
    student_device = "cpu" if is_sharded() else str(device)
    trusted = recipe.model.trust_remote_code
    teacher = load(parent, "dense", "auto", str(device), trusted).requires_grad_(False)
    student = load(parent, "dense", "float32", student_device, trusted).requires_grad_(False)
    if recipe.distillation is not None and recipe.distillation.gradient_checkpointing:
        without_dropout(student)
        student.gradient_checkpointing_enable({"use_reentrant": False})
        student.train()
    return _Pair(teacher, student)


def _work(
    recipe: Recipe, pair: _Pair, plan: QuantizationPlan, blocks: list[QuantizedBlock], tokens: torch.Tensor
) -> tuple[Distillation, Head]:
    """Make the student's weights trainable, and put together what the trainer needs."""
    settings = recipe.distillation
    assert settings is not None
    student = pair.student
    head = Head(pair.teacher)
    weights = _parametrized(student, plan, blocks, settings.norm_rate > 0)
    if recipe.reconstruction is not None:
        weights.settle(settings.settle)
    objective = Objective(build_losses(registry(), settings), head, settings.chunk_elements, student.config.vocab_size)
    teacher: Body | RememberedTeacher = Body(pair.teacher)
    if remembered_bytes(tokens, student.config.hidden_size) <= settings.teacher_memory:
        teacher = RememberedTeacher(Body(pair.teacher))
    return Distillation(Body(student), teacher, weights, objective, tokens), head


def training_record(
    recipe: Recipe, tokens: CalibrationTokens, blocks: Journal, distilled: Journal | None
) -> dict[str, Any]:
    """Return what a result says of its training: tokens, learning curves, diagnostics.

    Args:
        recipe: Says what was trained.
        tokens: What was trained on.
        blocks: The journal of the quantized blocks.
        distilled: The journal of the distilled ones, if there was a distillation.
    """
    samples, length = tokens.tokens.shape
    record: dict[str, Any] = {
        "preset": recipe.preset,
        "tokens": {"name": tokens.name, "n_samples": samples, "seq_len": length, "sha256": tokens.sha256},
    }
    if recipe.reconstruction is not None:
        record["reconstruction"] = [report["training"] for report in blocks.reports()]
    if distilled is not None:
        stored = json.loads((distilled.path / RECORD_FILE).read_text(encoding="utf-8"))
        layers = [layer for report in distilled.reports() for layer in report["layers"]]
        record["distillation"] = {**stored, "summary": summarize_layers(layers)}
    return record


def _parametrized(
    student: Any, plan: QuantizationPlan, blocks: list[QuantizedBlock], with_norms: bool
) -> ParametrizedWeights:
    """Make the student's quantized weights trainable, each from where the quantization left it."""
    weights: list[TrainableWeight] = []
    state: dict[str, torch.Tensor] = {}
    for index, block in enumerate(blocks):
        state.update(block.state)
        for target in plan.blocks[index]:
            if target.name in block.weights:
                weights.append(TrainableWeight(target, plan.quantizers[target.name], block.weights[target.name]))
    return ParametrizedWeights(student, weights, state, _norms(student, blocks) if with_norms else ())


def _norms(student: Any, blocks: list[QuantizedBlock]) -> list[str]:
    """Return the names of the blocks' vectors: norms and biases."""
    parameters = dict(student.named_parameters())
    return [name for block in blocks for name in block.untouched if name in parameters and parameters[name].dim() == 1]
