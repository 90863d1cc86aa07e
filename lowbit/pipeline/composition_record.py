"""Which combinations were seen to work, when, and with which versions: a file beside each plugin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lowbit.durable import write_json
from lowbit.errors import LowbitError
from lowbit.pipeline.composition import Combination
from lowbit.pipeline.composition_run import Outcome
from lowbit.pipeline.identity import package_versions
from lowbit.registry import Registry

RECORD_FILE = "tested_combinations.json"
UNTESTED = "no"
VERSIONED = ("lowbit", "torch")


class PassedGroup(BaseModel):
    """Combinations of one quantizer that passed, told apart by packer and kernel.

    Args:
        quantizer: Its name.
        options: Options that differ from the defaults.
        loss: Name of the loss, or `none`.
        format: What the weights came out as.
        packed: Names of kernels by packer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantizer: str
    options: dict[str, Any]
    loss: str
    format: str
    packed: dict[str, list[str]]


class RecordedRun(BaseModel):
    """All combinations that passed on one device.

    Args:
        device: Where.
        dtype: Of the activations.
        date: When, ISO.
        versions: Of packages.
        plugins: Version and content of each plugin that took part, by name.
        passed: What passed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    dtype: str
    date: str
    versions: dict[str, str]
    plugins: dict[str, str]
    passed: list[PassedGroup]


class CombinationRecord(BaseModel):
    """The file: one run for each device and dtype."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: list[RecordedRun] = []


def with_tests(registry: Registry, found: Iterable[Combination]) -> list[Combination]:
    """Fill in when each allowed combination was last seen to work, as the plugins' files say."""
    answers: dict[str, dict[str, str]] = {}
    result = []
    for combination in found:
        name = combination.variant.quantizer
        if name not in answers:
            answers[name] = _recorded(registry, name)
        tested = answers[name].get(_key(combination), UNTESTED) if combination.allowed else UNTESTED
        result.append(replace(combination, tested=tested))
    return result


def after_run(outcome: Outcome) -> Combination:
    """Return a combination that was just run, with the outcome."""
    today = datetime.now(UTC).date().isoformat()
    return replace(outcome.combination, tested=today if outcome.passed else f"failed: {outcome.problem}")


def write_records(registry: Registry, outcomes: Iterable[Outcome]) -> list[Path]:
    """Write what passed beside each quantizer's plugin, in place of what was recorded for the same device and dtype.

    Args:
        registry: Where the plugins are looked up.
        outcomes: All outcomes of a plugin's quantizers; those that failed are left out.

    Returns:
        The files.

    Raises:
        LowbitError: A file is damaged or cannot be written, or a quantizer was not read from a file.
    """
    by_file: dict[Path, list[Combination]] = {}
    for outcome in outcomes:
        if outcome.passed:
            file = record_file(registry, outcome.combination.variant.quantizer)
            by_file.setdefault(file, []).append(outcome.combination)
    for file, passed in by_file.items():
        run = _run(registry, passed)
        kept = [old for old in read_record(file).runs if (old.device, old.dtype) != (run.device, run.dtype)]
        write_json(file, CombinationRecord(runs=[*kept, run]).model_dump())
    return list(by_file)


def record_file(registry: Registry, quantizer: str) -> Path:
    """Return where the combinations of a quantizer are recorded: in its package, or beside its file.

    Raises:
        LowbitError: The quantizer was not read from a file.
    """
    name = registry.quantizer(quantizer).__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        raise LowbitError(f"quantizer {quantizer!r} comes from no file, so that nothing can be recorded beside it")
    home = Path(file)
    package = getattr(sys.modules.get(name.rpartition(".")[0]), "__file__", None)
    if home.name == "__init__.py" or package is not None:
        return home.with_name(RECORD_FILE)
    return home.with_name(f"{home.stem}.{RECORD_FILE}")


def read_record(file: Path) -> CombinationRecord:
    """Read a record; an absent one is empty.

    Raises:
        LowbitError: It is damaged.
    """
    try:
        return CombinationRecord.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return CombinationRecord()
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LowbitError(f"{file} is no record of tested combinations: {reason}; delete it and record anew") from error


def _run(registry: Registry, passed: list[Combination]) -> RecordedRun:
    groups: dict[str, PassedGroup] = {}
    for one in passed:
        key = json.dumps([one.variant.quantizer, one.variant.options, one.loss, one.format], sort_keys=True)
        group = groups.setdefault(
            key,
            PassedGroup(
                quantizer=one.variant.quantizer,
                options=dict(one.variant.options),
                loss=one.loss,
                format=one.format,
                packed={},
            ),
        )
        group.packed.setdefault(one.packer, []).append(one.kernel)
    return RecordedRun(
        device=passed[0].device,
        dtype=passed[0].dtype,
        date=datetime.now(UTC).date().isoformat(),
        versions=package_versions(VERSIONED),
        plugins={name: content for one in passed for name, content in _plugins(registry, one)},
        passed=list(groups.values()),
    )


def _recorded(registry: Registry, quantizer: str) -> dict[str, str]:
    """Return when the combinations of a quantizer were seen to work, by key."""
    answers: dict[str, str] = {}
    try:
        file = record_file(registry, quantizer)
    except LowbitError:  # There is no place for a record, so there is none.
        return answers
    for run in read_record(file).runs:
        for group in run.passed:
            for packer, kernels in group.packed.items():
                for kernel in kernels:
                    changed = _changed(registry, run, (group.quantizer, group.loss, packer, kernel))
                    parts = (group.quantizer, group.options, group.loss, group.format, packer, kernel)
                    answers[_key_of(*parts, run.device, run.dtype)] = run.date + changed
    return answers


def _changed(registry: Registry, run: RecordedRun, names: tuple[str, str, str, str]) -> str:
    """Say which plugins changed since a run."""
    now = dict(_plugins_of(registry, names))
    changed = sorted(name for name, content in now.items() if run.plugins.get(name) != content)
    return f", before changes to {', '.join(changed)}" if changed else ""


def _plugins(registry: Registry, one: Combination) -> Iterator[tuple[str, str]]:
    return _plugins_of(registry, (one.variant.quantizer, one.loss, one.packer, one.kernel))


def _plugins_of(registry: Registry, names: tuple[str, str, str, str]) -> Iterator[tuple[str, str]]:
    """Yield name and content of the plugins that bring a combination's parts."""
    kinds = ("weight quantizer", "distillation loss", "packer", "kernel")
    for kind, name in zip(kinds, names, strict=True):
        if name in registry.table(kind):
            source = registry.source(kind, name)
            yield source.plugin, source.content


def _key(one: Combination) -> str:
    variant = one.variant
    return _key_of(
        variant.quantizer, variant.options, one.loss, one.format, one.packer, one.kernel, one.device, one.dtype
    )


def _key_of(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)
