"""The result file of a reproduction."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowbit.contracts import PublishedCell
from lowbit.durable import make_directory, write_json
from lowbit.pipeline.bench_options import EVALUATION_PACKAGES
from lowbit.pipeline.identity import package_versions, plugin_versions
from lowbit.pipeline.published import EMBEDDED
from lowbit.pipeline.reproduce import Reproduction
from lowbit.recipe import Recipe
from lowbit.registry import registry
from lowbit.results.record import finite, sanitize
from lowbit.results.reproduction import Comparison, counts

BITS = ("nominal", "linear", "file")


def write_reproduction(found: Reproduction, folder: Path, device: str) -> Path:
    """Write what a reproduction found as JSON, beside the runs' own results.

    Returns:
        The file; its name has the paper, the model and the date, so that none is overwritten.

    Raises:
        LowbitError: The file cannot be written.
    """
    make_directory(folder)
    plan = found.plan
    moment = datetime.now(UTC).isoformat()
    recipes = {cell.identity: run.recipe for run in plan.runs for cell in run.cells}
    record = {
        "paper": plan.results.paper,
        "title": plan.results.title,
        "arxiv": plan.results.arxiv,
        "protocol": plan.results.protocol.model_dump(),
        "protocol_notes": plan.results.protocol_notes,
        "changes_of_protocol": plan.changes,
        "model": plan.model or EMBEDDED,
        "device": device,
        "date": moment,
        "versions": package_versions(EVALUATION_PACKAGES),
        "plugins": plugin_versions(registry().plugins),
        "counts": counts(found.cells),
        "parents": [_comparison_record(parent) for parent in found.parents],
        "cells": [
            _cell_record(cell, comparison, recipes.get(cell.identity), found)
            for cell, comparison in zip(plan.cells, found.cells, strict=True)
        ],
    }
    name = sanitize(f"reproduce_{plan.results.paper}__{plan.model_name}")
    path = folder / f"{name}_{moment.replace(':', '-')}.json"
    write_json(path, finite(record))
    return path


def _comparison_record(comparison: Comparison) -> dict[str, Any]:
    difference = comparison.difference
    return {
        **asdict(comparison),
        "difference_percent": None if difference is None else 100 * difference,
        "verdict": str(comparison.verdict),
        "better": comparison.better,
    }


def _cell_record(
    cell: PublishedCell, comparison: Comparison, recipe: Recipe | None, found: Reproduction
) -> dict[str, Any]:
    row = None if recipe is None else found.rows[recipe.sha256()]
    return {
        **_comparison_record(comparison),
        "published_cell": cell.model_dump(),
        "protocol": found.plan.results.protocol_of(cell).model_dump(),
        "recipe": None if recipe is None else recipe.to_dict(),
        "recipe_sha256": None if recipe is None else recipe.sha256(),
        "bits": None if row is None or row.bits is None else dict(zip(BITS, row.bits, strict=True)),
    }
