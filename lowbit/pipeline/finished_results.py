"""Which cells of a grid a results directory holds already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit.durable import make_directory, one_at_a_time
from lowbit.pipeline.bench_cells import evaluation_key
from lowbit.pipeline.bench_options import CHECKPOINTS, BenchOptions
from lowbit.pipeline.bench_plan import ParentGroup
from lowbit.recipe import Recipe
from lowbit.results.store import StoredResult, read_results


class FinishedResults:
    """The results of a directory, to be found by what they are results of.

    A parent's result counts if its evaluation has the same key, which is a hash of the parent's files, of the tasks
    with their documents, of the settings, device and number type, and of the packages. A quantized model's counts if it
    was judged beside such a parent, and recipe and checkpoint are the same: the checkpoint's name carries the hashes of
    the calibration tokens and of the plugins that made it.

    Args:
        folder: The results directory.
    """

    def __init__(self, folder: Path) -> None:
        self._results = read_results(folder).results if folder.exists() else ()

    def quantized(
        self, recipe: Recipe, checkpoint: Path, key: str, speed: bool, run: str | None = None
    ) -> StoredResult | None:
        """Return the newest result of a recipe.

        Args:
            recipe: The recipe.
            checkpoint: Where its checkpoint lies.
            key: The key of its parent's evaluation.
            speed: Whether decoding must have been timed.
            run: Only what this run wrote; `None` for any.
        """
        sha256 = recipe.sha256()

        def is_wanted(result: StoredResult) -> bool:
            ours = result.lowbit
            if result.role != "quantized" or result.recipe_sha256 != sha256 or ours.get("evaluation_key") != key:
                return False
            return Path(str(ours.get("checkpoint"))).name == checkpoint.name and (not speed or "speed" in ours)

        return self._newest(is_wanted, run)

    def parent(self, key: str, run: str | None = None) -> StoredResult | None:
        """Return the newest result of a parent.

        Args:
            key: The key of its evaluation.
            run: Only what this run wrote; `None` for any.
        """
        return self._newest(lambda result: result.role == "parent" and result.lowbit.get("evaluation_key") == key, run)

    def _newest(self, is_wanted: Callable[[StoredResult], bool], run: str | None) -> StoredResult | None:
        found = (each for each in reversed(self._results) if run is None or each.lowbit.get("run") == run)
        return next((each for each in found if is_wanted(each)), None)


def find_finished(
    group: ParentGroup, options: BenchOptions, finished: FinishedResults | None, run: str | None = None
) -> tuple[StoredResult | None, list[StoredResult | None]]:
    """Return what is there of a parent and of each of its cells.

    Args:
        group: The parent and its cells.
        options: Say what a result must have.
        finished: The results; `None` where nothing shall be skipped.
        run: Only what this run wrote; `None` for any.
    """
    if finished is None:
        return None, [None for _ in group.cells]
    key = evaluation_key(group.recipe, group.tasks, options.device)
    cells = [finished.quantized(cell.recipe, cell.checkpoint, key, options.speed, run) for cell in group.cells]
    return None if options.refresh_parent and run is None else finished.parent(key, run), cells


@contextmanager
def cell_turn(options: BenchOptions, role: str, recipe: Recipe, same: str) -> Iterator[None]:
    """Keep other processes from a cell that must not be there twice; they wait, and look again when they are let in.

    Args:
        options: Without `skip_finished`, every process adds a result of its own, and nobody waits.
        role: `parent` or `quantized`.
        recipe: The cell's recipe.
        same: What cells have in common that must take turns: a quantized model's recipe sha256; a parent's evaluation
            key, which recipes of any method and seed share.
    """
    if not options.skip_finished:
        yield
        return
    lock = options.folder / CHECKPOINTS / f"cell-{role}-{same[:16]}.lock"
    make_directory(lock.parent)
    with one_at_a_time(lock, f"at work on {recipe.method} with seed {recipe.seed} ({role})"):
        yield
        lock.unlink(missing_ok=True)  # Whoever comes later finds the result.
