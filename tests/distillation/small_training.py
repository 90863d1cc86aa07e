"""Trainings of small random models, a few steps long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import VOCABULARY, load_model, make_recipe
from torch import Tensor

from lowbit import DistillationLoss
from lowbit.contracts import DistillationSettings, TrainingStep
from lowbit.distillation.objective import Objective
from lowbit.distillation.parametrized import ParametrizedWeights
from lowbit.distillation.processes import make_accelerator
from lowbit.distillation.student import Body, Head, without_dropout
from lowbit.distillation.trainer import Distillation, Trainer
from lowbit.distillation.training_store import TrainingStore
from lowbit.models import find_decoder, read_weight
from lowbit.pipeline.targets import plan_for
from lowbit.quantization.block_training import TrainableWeight
from lowbit.recipe import build_losses
from lowbit.registry import registry

METHOD = "dbllm-ptq"
QUICK_START = {"quantizer": {"grid_candidates": 4, "iterations": 2}}
CALIBRATION = {"training_data": {"source": "calibration"}, **QUICK_START}


def random_tokens(samples: int = 12, length: int = 12, seed: int = 0) -> Tensor:
    """Return int64 [samples, length] of ordinary tokens."""
    return torch.randint(3, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))


def tokens_file(folder: Path, samples: int = 12, length: int = 12) -> Path:
    """Write random tokens as a calibration file."""
    path = folder / "tokens.npz"
    np.savez(path, tokens=random_tokens(samples, length).numpy())
    return path


@cache
def quantized_parent(folder: Path) -> list[TrainableWeight]:
    """Quantize every matrix of a model's folder, once."""
    return trainable_weights(load_model(folder), folder)


def trainable_weights(model: Any, folder: Path, method: str = METHOD) -> list[TrainableWeight]:
    """Quantize every matrix of a model, ready to be trained."""
    start = QUICK_START if method == METHOD else {}
    plan = plan_for(make_recipe(folder, method, **start), find_decoder(model), registry())
    made = []
    for target in plan.targets():
        if target.name in plan.quantizers:
            quantizer = plan.quantizers[target.name]
            quantized = quantizer.quantize(read_weight(model, target).float(), None, torch.Generator().manual_seed(0))
            made.append(TrainableWeight(target, quantizer, quantized))
    return made


def make_settings(**options: Any) -> DistillationSettings:
    """Return settings of a short training."""
    short = {"steps": 6, "batch_size": 4, "held_out": 2, "evaluate_every": 2, "checkpoint_every": 2}
    return DistillationSettings(**{**short, **options})


def make_trainer(
    folder: Path,
    store: Path,
    tokens: Tensor | None = None,
    on_step: Callable[[TrainingStep], None] = lambda step: None,
    losses: Sequence[tuple[DistillationLoss, float]] | None = None,
    accelerator: Any = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Trainer, Distillation]:
    """Return a trainer of a model's quantized form towards itself, and its work."""
    settings = make_settings(**options)
    student, teacher = (load_model(folder).requires_grad_(False) for _ in range(2))
    weights = ParametrizedWeights(student, quantized_parent(folder), {})
    if settings.gradient_checkpointing:
        without_dropout(student)
        student.gradient_checkpointing_enable({"use_reentrant": False})
        student.train()
    objective = Objective(
        build_losses(registry(), settings) if losses is None else losses,
        Head(teacher),
        settings.chunk_elements,
        VOCABULARY,
    )
    work = Distillation(Body(student), Body(teacher), weights, objective, random_tokens() if tokens is None else tokens)
    accelerator = accelerator or make_accelerator("cpu")
    return Trainer(work, settings, seed, TrainingStore(store), accelerator, on_step), work
