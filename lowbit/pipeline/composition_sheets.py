"""The composition matrix as a few small tables, each true for every combination that it sums up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lowbit.pipeline.composition import Combination

REFUSED = "no"
ALLOWED = "allowed"
TESTED = "tested"
STALE = "tested, changed since"
FAILED = "FAILED"
COLUMNS = (
    *("quantizer", "options", "methods", "loss", "format", "packer", "kernel", "device", "dtype"),
    *("allowed", "refused_by", "why", "tested"),
)


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Args:
        title: What it shows.
        header: Names of the columns.
        rows: Cells.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(found: Sequence[Combination], refused_only: bool = False) -> list[Sheet]:
    """Sum up combinations: quantizer by loss, layout by kernel, and what is refused and why.

    A cell says `tested` if all allowed combinations that it stands for are.
    """
    made = [_refusals(found)]
    if not refused_only:
        made = [_training(found), _layouts(found), *made]
    return [sheet for sheet in made if sheet.rows]


def summary(found: Sequence[Combination]) -> str:
    """Count the combinations in one line."""
    allowed = [one for one in found if one.allowed]
    states = [_state(one) for one in allowed]
    parts = [f"{len(allowed)} allowed", f"{len(found) - len(allowed)} refused"]
    named = {TESTED: "tested", STALE: "tested before a change", FAILED: "failed", ALLOWED: "never tested"}
    counts = [f"{states.count(state)} {text}" for state, text in named.items() if state in states]
    return f"{len(found)} combinations: {', '.join(parts)}; of the allowed ones {', '.join(counts) or 'none'}"


def flat(found: Iterable[Combination]) -> list[tuple[str, ...]]:
    """Return one row a combination, with the columns of `COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for one in found:
        options = " ".join(f"{key}={value}" for key, value in one.variant.options.items())
        head = (one.variant.quantizer, options, " ".join(one.variant.methods), one.loss, one.format, one.packer)
        tail = ("yes" if one.allowed else "no", " ".join(one.refusals), "; ".join(one.refusals.values()), one.tested)
        rows.append((*head, one.kernel, one.device, one.dtype, *tail))
    return rows


def _state(one: Combination) -> str:
    if not one.allowed:
        return REFUSED
    if one.tested.startswith("failed"):
        return FAILED
    if one.tested == "no":
        return ALLOWED
    return STALE if "before changes" in one.tested else TESTED


def _cell(group: Sequence[Combination], refused: bool) -> str:
    """Sum up combinations: the least that is true of all allowed ones."""
    states = {_state(one) for one in group if one.allowed}
    if refused or not states:
        return REFUSED
    return next(state for state in (FAILED, ALLOWED, STALE, TESTED) if state in states)


def _training(found: Sequence[Combination]) -> Sheet:
    """Lay out quantizers by losses; quantizers with equal rows share one."""
    losses = _names(found, lambda one: one.loss)
    rows: dict[tuple[str, ...], list[str]] = {}
    for label in _names(found, lambda one: one.variant.label):
        own = [one for one in found if one.variant.label == label]
        cells = []
        for loss in losses:
            group = [one for one in own if one.loss == loss]
            cells.append(_cell(group, all({"loss", "quantizer"} & one.refusals.keys() for one in group)))
        rows.setdefault(tuple(cells), []).append(label)
    lines = tuple(("\n".join(labels), *cells) for cells, labels in rows.items())
    return Sheet("Quantizers and distillation losses (`none`: no training)", ("quantizer", *losses), lines)


def _layouts(found: Sequence[Combination]) -> Sheet:
    """Lay out formats and packers by kernels; what a packer refuses is left out, and equal rows share one."""
    kernels = _names(found, lambda one: one.kernel)
    served = [one for one in found if one.format and not {"packer", "quantizer"} & one.refusals.keys()]
    groups: dict[tuple[str, str, str], list[Combination]] = {}
    for one in served:
        groups.setdefault((one.format, one.packer, one.variant.label), []).append(one)
    rows: dict[tuple[str, ...], list[str]] = {}
    for (format_name, packer, _), own in groups.items():
        cells = [_kernel_cell([one for one in own if one.kernel == kernel]) for kernel in kernels]
        quantizers = rows.setdefault((format_name, packer, *cells), [])
        if own[0].variant.quantizer not in quantizers:
            quantizers.append(own[0].variant.quantizer)
    lines = tuple((key[0], ", ".join(quantizers), *key[1:]) for key, quantizers in rows.items())
    return Sheet("Formats, packers and kernels", ("format", "made by", "packer", *kernels), lines)


def _kernel_cell(group: Sequence[Combination]) -> str:
    """Sum up what a kernel says of the weights that one quantizer makes, trained and not."""
    refused = {"kernel" in one.refusals for one in group}
    if refused == {True, False}:
        return "of some weights"
    return _cell(group, refused == {True})


def _refusals(found: Sequence[Combination]) -> Sheet:
    """List each reason once, with what it parts from what."""
    rows: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for one in found:
        for part, reason in one.refusals.items():
            refusing = {"quantizer": one.variant.label, "loss": one.loss, "packer": one.packer, "kernel": one.kernel}
            of = one.variant.quantizer if part == "loss" else one.format or one.variant.quantizer
            if part == "kernel":
                of = f"{one.format} in {one.packer}"
            first, second = rows.setdefault((part, reason), ([], []))
            for names, name in ((first, refusing[part]), (second, of)):
                if name not in names:
                    names.append(name)
    lines = tuple(
        (part, ", ".join(first), ", ".join(second), reason) for (part, reason), (first, second) in rows.items()
    )
    return Sheet("Refused, and why", ("part", "which", "refuses", "because"), lines)


def _names(found: Iterable[Combination], name: Callable[[Combination], str]) -> list[str]:
    return list(dict.fromkeys(name(one) for one in found))
