"""From stored results to the rows of the table that ends a run."""

from __future__ import annotations

from lowbit.results.metrics import primary_metrics, read_metrics
from lowbit.results.store import StoredResult
from lowbit.results.table import Row


def row_of(result: StoredResult, parent: StoredResult | None = None) -> Row:
    """Return the row of a result.

    Args:
        result: Of a parent, or of a quantized model.
        parent: The result of its parent; `None` for the parent itself.
    """
    ours = result.lowbit
    bits, cost = result.bits or {}, ours.get("cost") or {}
    return Row(
        model=result.model,
        method=result.method,
        bits=(bits["nominal_bits"], bits["quantized_bits"], bits["whole_file_bits"]) if bits else None,
        metrics=primary_metrics(result.harness),
        parent={} if parent is None else primary_metrics(parent.harness),
        chance=ours.get("chance") or {},
        seconds=cost.get("seconds"),
        memory_bytes=cost.get("peak_memory_bytes"),
        recipe_sha256=result.recipe_sha256,
        measured=result.metrics,
        parent_measured=() if parent is None else tuple(read_metrics(parent.harness)),
        decoding=tuple(rates["tokens_per_second"] for rates in (ours.get("speed") or {}).values()),
        seed=result.seed,
    )
