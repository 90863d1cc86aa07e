"""The tiny model quantized by one quantizer, once a process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import lowbit.modeling.hf_quantizer  # noqa: F401  (registers the quantizer with transformers)
from lowbit.contracts import WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.models.streamed import quiet
from lowbit.testing.checkpoints import recipe_of, write_tiny_checkpoint
from lowbit.testing.failure import ANY_ERROR
from lowbit.testing.matrices import gaussian
from lowbit.testing.quantizing import quantize_matrix
from lowbit.testing.registering import registered
from lowbit.testing.tiny_model import tiny_model, work_folder


@dataclass(frozen=True)
class Made:
    """A checkpoint, or why there is none.

    Args:
        folder: Where it lies, or would.
        error: What went wrong; empty if nothing did.
    """

    folder: Path
    error: str = ""

    def require(self) -> Path:
        """Return the folder.

        Raises:
            SkipTest: There is no checkpoint.
        """
        if self.error:
            raise SkipTest("no checkpoint could be made: see test_a_whole_model_is_quantized")
        return self.folder


def tiny_checkpoint(quantizer: type[WeightQuantizer], options: Mapping[str, Any], packer: str = "plain") -> Made:
    """Quantize the tiny model, once a process; quantizer, format and packer must be registered."""
    return _made(quantizer, json.dumps(dict(options), sort_keys=True), packer)


@cache
def _made(quantizer: type[WeightQuantizer], options: str, packer: str) -> Made:
    folder = new_folder()
    try:
        write_tiny_checkpoint(recipe_of(quantizer, json.loads(options), packer), folder)
    except ANY_ERROR as error:  # whatever the code under test raises
        return Made(folder, f"{type(error).__name__}: {error}")
    return Made(folder)


def new_folder() -> Path:
    """Return a place for a checkpoint that nothing else takes."""
    root = work_folder()
    number = sum(1 for _ in root.glob("checkpoint-*.taken"))
    (root / f"checkpoint-{number}.taken").touch(exist_ok=False)
    return root / f"checkpoint-{number}"


def load_packed(folder: Path) -> Any:
    """Load a checkpoint, or any other model, as users do, in float32."""
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_parent() -> nn.Module:
    """Load the tiny model itself, in float32."""
    model: nn.Module = load_packed(tiny_model().folder)
    return model


@contextmanager
def checkpoint_of(quantizer: type[WeightQuantizer], packer: str = "plain", **options: Any) -> Iterator[Path]:
    """Quantize the kit's tiny model; the folder is there, and everything in it registered, while the context is open.

    Args:
        quantizer: The class.
        packer: Name of the packer.
        **options: Of the quantizer.
    """
    quantized = quantize_matrix(quantizer, gaussian(8, 40), **options)
    with registered(quantizer, type(quantized)):
        made = tiny_checkpoint(quantizer, options, packer)
        if made.error:
            raise LowbitError(f"the tiny model cannot be quantized: {made.error}")
        yield made.folder
