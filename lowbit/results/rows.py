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
    nominal, linear, file = (bits.get(name) for name in ("nominal_bits", "quantized_bits", "whole_file_bits"))
    rates = [rates.get("tokens_per_second") for rates in (ours.get("speed") or {}).values() if rates]
    return Row(
        model=result.model,
        method=result.method,
        bits=None if nominal is None or linear is None or file is None else (nominal, linear, file),
        metrics=primary_metrics(result.harness),
        parent={} if parent is None else primary_metrics(parent.harness),
        chance=ours.get("chance") or {},
        seconds=cost.get("seconds"),
        memory_bytes=cost.get("peak_memory_bytes"),
        recipe_sha256=result.recipe_sha256,
        measured=result.metrics,
        parent_measured=() if parent is None else tuple(read_metrics(parent.harness)),
        decoding=tuple(rate for rate in rates if rate),
        seed=result.seed,
    )
