"""Checkpoints of the tiny model: made in one go, made with an interruption, and what is in their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lowbit.contracts import QuantizedBlock, WeightQuantizer
from lowbit.modeling.checkpoint_writer import PROVENANCE_FILE
from lowbit.pipeline.make_checkpoint import journal_path, make_checkpoint
from lowbit.pipeline.prepare import prepare
from lowbit.pipeline.quantize import NoEvents
from lowbit.recipe import Recipe, resolve_recipe
from lowbit.registry import registry
from lowbit.testing.tiny_model import tiny_model


class InterruptedByKitError(Exception):
    """Raised by the kit itself in the middle of a run."""


class Observer(NoEvents):
    """Observes a run, and interrupts it after a block if asked to.

    Args:
        stop_after: Position of the block after which the run is interrupted; `None` for never.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self._stop_after = stop_after

    def block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        """Interrupt after the block that was asked for."""
        if block.index == self._stop_after:
            raise InterruptedByKitError


def recipe_of(quantizer: type[WeightQuantizer], options: Mapping[str, Any], packer: str = "plain") -> Recipe:
    """Return the recipe that quantizes the tiny model; the quantizer must be registered."""
    model = tiny_model()
    return resolve_recipe(
        registry(),
        None,
        {"quantizer": {"name": quantizer.name, **options}, "packer": {"name": packer}},
        {"model": {"path": str(model.folder)}, "calibration": {"source": str(model.tokens)}},
    )


def write_tiny_checkpoint(recipe: Recipe, output: Path, stop_after: int | None = None) -> Path:
    """Make a checkpoint, or go on with an interrupted one.

    Raises:
        InterruptedByKitError: After the block that was asked for.
    """
    ready = prepare(recipe)
    make_checkpoint(recipe, ready, output, Observer(stop_after), "cpu")
    return output


def journal_of(output: Path) -> Path:
    """Return where the journal of an unfinished checkpoint lies."""
    return journal_path(output)


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint's safetensors files."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= load_file(file)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint."""
    return sorted(folder.glob("*.safetensors"))


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a checkpoint."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def is_complete(folder: Path) -> bool:
    """Say whether a checkpoint was finished."""
    return (folder / PROVENANCE_FILE).is_file()


@torch.no_grad()
def logits_of(model: Any, tokens: Tensor) -> Tensor:
    """Run a model on tokens [samples, length]: [samples, length, vocabulary]."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits
