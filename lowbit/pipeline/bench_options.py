"""How a bench runs, and where its files lie."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.contracts import RunEvents
from lowbit.pipeline.prepare import Preparation
from lowbit.pipeline.quantize import HookEvents
from lowbit.recipe import Recipe, canonical_sha256
from lowbit.results.record import sanitize

CHECKPOINTS = "checkpoints"
PARENTS = "parents"
EVALUATION_PACKAGES = ("lowbit", "torch", "transformers", "lm_eval", "datasets", "safetensors", "tokenizers")


def new_run_id() -> str:
    """Return a name that no other run has."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class BenchOptions:
    """How a bench runs, beside what the recipes say.

    Args:
        output_path: Where results, checkpoints and cached parents go.
        device: Where models are worked on and evaluated.
        events: Makes the observers of one quantization.
        announce: Is told what happens next.
        refresh_parent: Evaluate parents again although their results are cached.
        extra_tasks: Task configurations beside lm-eval's own.
        speed: Time greedy decoding of each packed model beside its dense form.
        skip_finished: Leave out what the results directory holds already, and take its rows from there.
        run: Name of this run, which its results carry.
    """

    output_path: Path
    device: str = "cpu"
    events: Callable[[Recipe], RunEvents] = HookEvents
    announce: Callable[[str], None] = lambda text: None
    refresh_parent: bool = False
    extra_tasks: Sequence[dict[str, Any]] = ()
    speed: bool = False
    skip_finished: bool = False
    run: str = field(default_factory=new_run_id)

    @property
    def folder(self) -> Path:
        """The results directory."""
        return self.output_path.parent if self.output_path.suffix == ".json" else self.output_path


def model_name(recipe: Recipe) -> str:
    """Return what tables call a recipe's parent."""
    if recipe.model.path is None:
        return "embedded"
    path = Path(recipe.model.path)
    return path.resolve().name if path.is_dir() else path.name


def checkpoint_path(folder: Path, recipe: Recipe, ready: Preparation) -> Path:
    """Return where a recipe's checkpoint lies: the name carries a hash of all that decides its bytes."""
    name = f"{sanitize(model_name(recipe))}__{recipe.method}-{canonical_sha256(ready.signature)[:12]}"
    return folder / CHECKPOINTS / name
