"""Command lines in forks of this process, with a fault at a moment that is drawn: by the clock, or at a dangerous call.

Dangerous calls are those that give files their names or bring them to the disk. A fault at each of them hits the places
where a run could lose or break something far more often than the clock does.
"""

from __future__ import annotations

import builtins
import gc
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from faults.phases import PHASES, Inputs, Phase, place

from lowbit.cli.main import main as lowbit_main
from lowbit.hookspecs import hookimpl
from lowbit.registry import registry

Act = Callable[[], None]


class Calls:
    """Counts dangerous calls, and does something just before or after one of them.

    Args:
        at: The call, from 0; -1 for none.
        after: Whether to act after it.
        act: What to do.
    """

    def __init__(self, at: int, after: bool, act: Act) -> None:
        self.number = 0
        self._at, self._after, self._act = at, after, act

    def install(self) -> None:
        """Wrap the calls in this process."""
        for module, name in ((os, "replace"), (os, "rename"), (os, "link"), (os, "fsync")):
            setattr(module, name, self._wrapped(getattr(module, name)))
        safetensors.torch.save_file = self._wrapped(safetensors.torch.save_file)
        opened = self._wrapped(io.open)

        def open_file(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            writes = isinstance(file, str | Path) and set(mode) & set("wxa")
            return (opened if writes else original)(file, mode, *arguments, **options)

        original = io.open
        io.open = builtins.open = open_file  # type: ignore[assignment]

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            hit, self.number = self.number == self._at, self.number + 1
            if hit and not self._after:
                self._act()
            result = function(*arguments, **options)
            if hit and self._after:
                self._act()
            return result

        return counted


class Watcher:
    """A plugin that notes where a run begins: finished blocks, and the first step of each training."""

    def __init__(self, file: Path) -> None:
        self.seen: dict[str, int] = {}
        self._file = file

    @hookimpl
    def lowbit_run_started(self, finished: int) -> None:
        """Note how many blocks were finished."""
        self._note("blocks", finished)

    @hookimpl
    def lowbit_distillation_step(self, step: Any) -> None:
        """Note a first step; of a reconstruction, with its block."""
        self._note(step.stage, place(step.block or 0, step.step))

    def _note(self, key: str, value: int) -> None:
        if key not in self.seen:
            self.seen[key] = value
            self._file.write_text(json.dumps(self.seen))


def note_number(calls: Calls, file: Path) -> None:
    """Write down how many dangerous calls there were."""
    number = calls.number
    file.write_text(str(number))


def start(
    command: list[str],
    log: Path | int,
    prepare: Act = lambda: None,
    seen: Path | None = None,
    ended: Act = lambda: None,
) -> int:
    """Run a command line in a fork, its output in a log or an open file; returns the process id."""
    sys.stdout.flush()
    if isinstance(log, Path):
        log.touch()  # A child may be killed before it opens it.
    child = os.fork()
    if child:
        return child
    code = 97
    try:
        # In a fork, torch makes its pool anew at the first call, which fails where two threads make it at once.
        torch.set_num_threads(1)
        descriptor = log if isinstance(log, int) else os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        prepare()
        if seen is None:
            lowbit_main(command)
        else:
            with registry().observing(Watcher(seen)):
                lowbit_main(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
        ended()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> int:
    """Wait for a child; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Bench:
    """A folder with undisturbed runs of every phase: how long each takes, its dangerous calls, and its bytes.

    Args:
        root: The folder.
        parent: A small model.
        tokens: Calibration tokens.
        phases: Which phases to run.
    """

    def __init__(self, root: Path, parent: Path, tokens: Path, phases: list[str]) -> None:
        torch.set_num_threads(1)
        self.root = root
        self.inputs = Inputs(parent, tokens, root / "before-quantization" / "out", root / "before-results" / "out")
        self.phases = [PHASES[name] for name in phases]
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.expected: dict[str, dict[str, str]] = {}
        needed = [PHASES["quantization"]]
        needed += [PHASES["results"]] if {"report", "leaderboard"} & set(phases) else []
        for phase in [*needed, *self.phases]:
            self._import(phase)
        gc.collect()
        gc.freeze()  # A collection in a fork would copy every page of what was imported.
        for phase in self.phases:
            self._measure(phase)

    def folder(self, name: str) -> Path:
        """Make a folder for a run."""
        folder = self.root / name
        folder.mkdir()
        return folder

    def command(self, phase: Phase, folder: Path) -> list[str]:
        """Return a phase's command line in a folder."""
        return phase.command(self.inputs, folder)

    def again(self, phase: Phase, folder: Path, log: Path, seen: Path | None = None) -> int:
        """Repeat a phase's command, unless it ended with a folder that it does not overwrite; return the status."""
        if phase.name == "packing" and (folder / phase.output).exists():
            log.touch()
            return 0
        return finish(start(self.command(phase, folder), log, seen=seen))

    def _import(self, phase: Phase) -> None:
        """Run a phase here, so that a fork has all of its modules."""
        folder = self.root / f"before-{phase.name}"
        if not folder.exists():
            folder.mkdir()
            try:
                lowbit_main(self.command(phase, folder))
            except SystemExit as end:
                assert not end.code, end.code

    def _measure(self, phase: Phase) -> None:
        """Run a phase in a fork without a fault."""
        folder, count = self.folder(f"undisturbed-{phase.name}"), self.root / f"{phase.name}.calls"
        calls = Calls(-1, False, lambda: None)
        started = time.monotonic()
        log = self.root / f"{phase.name}.log"
        child = start(self.command(phase, folder), log, calls.install, ended=lambda: note_number(calls, count))
        status = finish(child)
        assert status == 0, log.read_text()
        self.seconds[phase.name] = time.monotonic() - started
        self.calls[phase.name] = int(count.read_text())
        self.expected[phase.name] = phase.made(folder)
        assert self.expected[phase.name]
