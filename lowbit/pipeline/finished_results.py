"""Which cells of a grid a results directory holds already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lowbit.recipe import Recipe
from lowbit.results.store import StoredResult, read_results


class FinishedResults:
    """The results of a directory, to be found by what they are results of.

    A quantized model's result counts if recipe and checkpoint are the same: the checkpoint's name carries the hashes of
    the parent's files, of the calibration tokens and of the plugins that made it. A parent's counts if its evaluation
    has the same key, which is a hash of the parent's files, of the tasks with their documents, and of the packages.

    Args:
        folder: The results directory.
    """

    def __init__(self, folder: Path) -> None:
        self._results = read_results(folder).results if folder.exists() else ()

    def quantized(self, recipe: Recipe, checkpoint: Path, run: str | None = None) -> StoredResult | None:
        """Return the newest result of a recipe.

        Args:
            recipe: The recipe.
            checkpoint: Where its checkpoint lies.
            run: Only what this run wrote; `None` for any.
        """
        sha256 = recipe.sha256()

        def is_wanted(result: StoredResult) -> bool:
            named = Path(str(result.lowbit.get("checkpoint"))).name
            return result.role == "quantized" and result.recipe_sha256 == sha256 and named == checkpoint.name

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
