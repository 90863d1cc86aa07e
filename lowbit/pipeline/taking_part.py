"""How several processes share a bench: all quantize and train; the main one decides, evaluates and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lowbit.distillation.processes import from_main_process, several_processes
from lowbit.errors import FailedTogetherError, LowbitError
from lowbit.pipeline.quantize import NoEvents, quantize_to
from lowbit.recipe import Recipe


def call_others(recipe: Recipe, output: Path) -> None:
    """Let the other processes, if there are any, join a quantization that the main process starts now."""
    if several_processes():
        from_main_process((recipe.sha256(), str(output)))


def let_others_go() -> None:
    """Tell the other processes, if there are any, that nothing more comes."""
    if several_processes():
        from_main_process(None)


@contextmanager
def refusal_told() -> Iterator[None]:
    """Let the other processes, if there are any, end when the main one refuses to begin; it is the one that says why.

    Raises:
        LowbitError: What the main process refused.
    """
    try:
        yield
    except LowbitError as error:
        if several_processes():
            from_main_process(str(error))
        raise


def take_part(recipes: Sequence[Recipe], device: str) -> None:
    """Join every quantization that the main process calls for, until it lets this process go.

    Args:
        recipes: The same as the main process has.
        device: Where to work.

    Raises:
        LowbitError: A quantization failed, or the main process refused to begin.
    """
    known = {recipe.sha256(): recipe for recipe in recipes}
    while (call := from_main_process(None)) is not None:
        if isinstance(call, str):
            raise FailedTogetherError(call)
        sha256, output = call
        quantize_to(known[sha256], Path(output), NoEvents(), device)
